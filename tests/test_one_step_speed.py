"""The benchmark of one-step students runs where there is no GPU, on the embedded teacher's parts."""

import json
import sys

import pytest

from benchmarks.speed import one_step


def measured(monkeypatch, tmp_path, *cases):
    monkeypatch.setattr(one_step, "SECONDS", 0.01)
    file = tmp_path / "speed.json"
    options = ["--device", "cpu", "--rounds", "1", "--json", str(file), "--cases", *cases]
    monkeypatch.setattr(sys, "argv", ["one_step", *options])
    one_step.main()
    return json.loads(file.read_text())


def test_parts_and_the_whole_are_timed(monkeypatch, tmp_path):
    result = measured(monkeypatch, tmp_path, "1:eager", "2:eager:last")
    assert [(case["batch"], case["last"], case["pictures"]) for case in result["cases"]] == [
        (1, False, [1, 3, 32, 32]), (2, True, [2, 3, 32, 32]),
    ]  # fmt: skip
    for case in result["cases"]:
        assert set(case["milliseconds"]) == {"text", "network", "vae", "whole"}
        speed = 1e3 * case["batch"] / case["milliseconds"]["whole"]
        assert case["images_per_second"] == pytest.approx(speed, rel=0.01)
    assert result["best"] == max(result["cases"], key=lambda case: case["images_per_second"])
    assert result["environment"]["versions"]["torch"] and not result["not_measured"]


def test_a_case_that_fails_is_recorded_and_the_others_go_on(monkeypatch, tmp_path):
    measure = one_step.measure

    def failing(parts, case, rounds, device):
        if case.batch == 2:
            raise RuntimeError("out of memory\nand more")
        return measure(parts, case, rounds, device)

    monkeypatch.setattr(one_step, "measure", failing)
    result = measured(monkeypatch, tmp_path, "2:eager", "1:eager")
    assert [case["batch"] for case in result["cases"]] == [1]
    assert [(case["batch"], case["why"]) for case in result["not_measured"]] == [(2, "out of memory")]


@pytest.mark.parametrize("case", ["1", "1:fast", "1:eager:first", "many:eager"])
def test_a_case_that_is_none_is_refused(monkeypatch, tmp_path, case):
    with pytest.raises(SystemExit) as error:
        measured(monkeypatch, tmp_path, case)
    assert error.value.code == 2
