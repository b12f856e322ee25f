"""Presets are tuned with equal care: as many settings for every entry, all of them valid, and a choice from the log."""

import sys
from typing import Any

import pytest

from benchmarks.tuning import __main__ as command
from benchmarks.tuning.dimensions import Choice, Log, Times, setting
from benchmarks.tuning.presets import choices, replace, source_of, unread_in, values_of
from benchmarks.tuning.search import SEED, best, settings_in, settings_of
from benchmarks.tuning.spaces import PAIRS, SUITES
from benchmarks.tuning.summary import summary
from distillkit import Preset, load_teacher
from distillkit.benchmark.results import read_results
from distillkit.benchmark.suite import Entry, load_suite
from distillkit.data.pairs import PairsConfig, PairSource
from distillkit.registry import registry
from distillkit.runs.config import resolve
from distillkit.runs.validation import merge


@pytest.mark.parametrize("name", sorted(SUITES))
def test_every_entry_has_as_many_settings_and_all_are_valid(name):
    suite = load_suite(name)
    for entry, whole in suite.methods.items():
        method, drawn = suite.method_of(entry), settings_of(name, entry, 24, seed=0)
        assert len(drawn) == 24 and drawn[0] == {}
        assert len({str(changes) for changes in drawn}) == 24
        for changes in drawn[::4]:
            given = Entry.model_validate(merge(whole.model_dump(), changes))
            options = {"teacher": suite.teacher, "settings": given.settings, "training": given.training}
            config = resolve(registry().method(method), options={**options, "student": given.student})[0]
            assert config.training.lr == given.training.get("lr", config.training.lr)
            # What an ablation leaves out stays out, and a curriculum is the entry's.
            fixed = {"kl_weight", "regression_weight", "curriculum"} & whole.settings.keys()
            assert all(given.settings[key] == whole.settings[key] for key in fixed)


@pytest.mark.parametrize("name", sorted(SUITES))
def test_a_quarter_of_the_budget_pays_for_the_most_pairs_that_are_drawn(name):
    """Else the methods that regress on pairs have fewer settings than the others."""
    suite = load_suite(name)
    most = setting(PAIRS[name], [0.999] * len(PAIRS[name]))["sources"]["pairs"]
    source = PairSource(load_teacher(suite.teacher), PairsConfig(**most, guidance=suite.guidance))
    assert 0.3 * suite.budget / 4 < source.cost <= 0.77 * suite.budget / 4


@pytest.mark.parametrize("name", sorted(SUITES))
def test_a_suite_that_was_searched_uses_what_was_found(name):
    suite, log = load_suite(name), command.RESULTS / name / "tuning.jsonl"
    found = dict(choices(suite, command.read(log)))
    if set(found) != set(suite.methods):
        pytest.skip("the search has not come to its end")
    for entry, line in found.items():
        whole = suite.methods[entry]
        options = {"teacher": suite.teacher, "settings": whole.settings, "training": whole.training}
        options |= {"student": whole.student, "sources": whole.sources}
        method = registry().find("methods", suite.method_of(entry), "")
        config = resolve(method.value, options=options)[0].model_dump(mode="json")
        made, wanted = settings_in(config), line["config"]
        made["training"] |= suite.training
        made["pairs"] = PairsConfig(**made["pairs"]).model_dump(mode="json")
        # Not of a source that it does not read; nor by settings that came after the search, which have defaults.
        unread = unread_in(wanted, method, suite)
        for part in wanted:
            names = wanted[part].keys() - (unread if part == "settings" else set())
            assert {name: made[part][name] for name in names} == {name: wanted[part][name] for name in names}, entry


def test_a_choice_is_written_in_the_place_of_the_former_preset(tmp_path):
    suite, method = load_suite("mixture"), registry().method("consistency")
    asked = {"training": {"lr": 0.0031, "warmup": "2k"}, "settings": {"levels": 41, "distance": "l1"}}
    config = resolve(method, options={"teacher": "digits", **asked})[0].model_dump(mode="json")
    line = {"config": settings_in(config), "images": 123_456}
    values = values_of(suite, "consistency", line)
    path = tmp_path / "presets.py"
    path.write_text(
        "PRESETS = (\n    Preset(name='digits', teachers=('digits',)),\n"
        "    Preset(\n        name='mixture',\n    ),\n)\n"
    )
    assert replace(path, suite, source_of(suite, values))
    made: dict[str, Any] = {"Preset": Preset}
    exec(path.read_text(), made)
    kept, preset = made["PRESETS"]
    assert kept.name == "digits" and preset.name == "mixture" and preset.teachers == ("mixture",)
    assert preset.settings["levels"] == 41 and preset.settings["distance"] == "l1"
    assert preset.training["lr"] == 0.0031 and preset.training["duration"] == "120k"
    assert preset.training["warmup"] == 2000 and "batch" not in preset.training, "what is so by default is not said"
    assert values.beside(values) == {} and not replace(tmp_path / "presets.py", load_suite("shapes"), "")


@pytest.mark.parametrize("name", sorted(SUITES))
def test_no_report_is_of_the_seed_by_which_settings_were_chosen(name):
    assert SEED not in load_suite(name).model_copy(update={"seeds": 1000}).training_seeds


def test_the_same_seed_draws_the_same_and_another_others():
    assert settings_of("digits", "dmd", 8, seed=0) == settings_of("digits", "dmd", 24, seed=0)[:8]
    assert settings_of("digits", "dmd", 8, seed=0)[1:] != settings_of("digits", "dmd", 8, seed=1)[1:]


def test_a_point_becomes_nested_changes():
    dimensions = (Log("training.lr", 1e-4, 1e-2), Times("settings.rate", "training.lr", 1, 10), Choice("a.b.c", (1, 2)))
    assert setting(dimensions, (0.5, 0.5, 0.99)) == {
        "training": {"lr": 1e-3}, "settings": {"rate": 3.2e-3}, "a": {"b": {"c": 2}},
    }  # fmt: skip


def test_a_training_that_failed_is_not_the_best():
    lines = [{"value": None}, {"value": 2.0}, {"value": 1.0}, {"value": 3.0}]
    assert [line["value"] for line in best(lines, 2)] == [1.0, 2.0]


def test_a_search_from_the_command_line_goes_on_where_it_was(monkeypatch, tmp_path, capsys):
    small = load_suite("mixture").model_copy(update={"budget": 24_000, "samples": 4096})
    monkeypatch.setattr(command, "load_suite", lambda name: small)
    log = tmp_path / "tuning.jsonl"
    options = ["mixture", "sid", "--settings=3", "--finalists=1", f"--folder={tmp_path}", f"--log={log}"]
    monkeypatch.setattr(sys, "argv", ["tuning", *options])
    command.main()
    lines = command.read(log)
    assert [(line["round"], line["number"]) for line in lines[:3]] == [("share", 0), ("share", 1), ("share", 2)]
    share, (whole,) = lines[:3], lines[3:]
    assert whole["number"] == best(share, 1)[0]["number"] and whole["changes"] == best(share, 1)[0]["changes"]
    assert {run.seed for run in read_results(tmp_path / "mixture" / "sid-whole").runs} == {SEED}
    config = read_results(tmp_path / "mixture" / "sid-whole").runs[0].config
    assert whole["config"]["training"].items() <= config["training"].items() and "duration" not in whole["config"]
    assert whole["config"]["settings"] == config["settings"] and whole["config"]["student"] == config["student"]
    assert max(line["cost"] for line in share) <= 6_000 < whole["cost"] <= 24_000
    assert set(whole["diagnostics"]) == set(whole["health"]) != set()
    page = log.with_suffix(".md").read_text()
    assert "24,000 forward-equivalents" in page and f"| {whole['number']} | " in page
    command.main()
    assert command.read(log) == lines and "already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nope"], "unknown suite 'nope'"),
        (["mixture", "kd", "nope"], "the suite mixture has no entry 'nope', but: dmd"),
        (["mixture", "kd", "--settings=0"], "--settings: 0 is not between 1 and 4096"),
        (["mixture", "kd", "--share=0"], "--share: 0 is not between"),
        (["own", "kd"], "'own' has no space to search, which kd of the suite own needs"),
    ],
)
def test_what_cannot_be_searched_is_one_message_before_any_training(monkeypatch, tmp_path, capsys, options, message):
    if options[0] == "own":
        own = load_suite("mixture").model_copy(update={"name": "own"})
        monkeypatch.setattr(command, "load_suite", lambda name: own)
    monkeypatch.setattr(sys, "argv", ["tuning", *options, f"--folder={tmp_path / 'made'}", f"--log={tmp_path / 'log'}"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_an_entry_whose_trainings_all_failed_has_no_choice():
    failed = {"entry": "dmd", "round": "share", "value": None, "reason": "not finite"}
    lines = [{**failed, "number": number, "changes": {}} for number in range(2)]
    page = summary(load_suite("digits"), lines)
    assert "| dmd | failed | failed | failed | 2 | failed | none |" in page and "(2: its former preset" in page
