"""Prompts of runs and samples, by the commands."""

from __future__ import annotations

import json

import pytest

from tests.data.pipelines import tiny_pipeline

LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("text"))


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"a {letter}\n" for letter in LETTERS) + "x " * 5000 + "\n")
    return tmp_path / "prompts.txt"


def arguments(pipeline, *more):
    return (
        "run", "kd", "--teacher", pipeline, "--protocol", "none", "--duration", "16", "--batch", "8", "--pairs-count",
        "8", "--pairs-steps", "1", "--pairs-solver", "ddim", "--channels-last", "off", *more,
    )  # fmt: skip


def test_a_run_with_prompts_and_the_same_ones_when_it_goes_on(pipeline, listed, inside, tmp_path):
    plan = inside(*arguments(pipeline, "--prompts", listed, "--dry-run"))
    assert plan.returncode == 0 and "11 prompts from" in " ".join(plan.stdout.split()), plan.stderr
    assert not (tmp_path / "run").exists()
    done = inside(*arguments(pipeline, "--prompts", listed, "-o", "run"))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert f"prompts: 11 prompts from {listed}" in said
    assert said.count("longer than the text encoder reads") == 1 and "warning: 1 of 11 prompts" in said
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert inputs["prompts"].startswith("11 of ")
    described = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert described["conditioner"]["examples"][:2] == ["a a", "a b"]
    assert inputs["prompts"].split()[-1] == described["conditioner"]["listed"][:16]
    listed.write_text("something else\n")
    other = inside("run", "kd", "--resume", "run", "--duration", "32")
    assert other.returncode == 2 and "prompts: 11 of" in other.stderr and "1 of" in other.stderr


def test_prompts_that_lack_or_that_nobody_reads_are_refused_before_anything_is_written(
    pipeline, listed, inside, tmp_path
):
    lacking = inside(*arguments(pipeline, "-o", "run"))
    assert (
        lacking.returncode == 2 and "tiny-text needs prompts" in lacking.stderr and "--prompts FILE" in lacking.stderr
    )
    unread = inside("run", "kd", "--teacher", "digits", "--prompts", listed, "-o", "run")
    assert unread.returncode == 2 and "takes no prompts (10 classes)" in unread.stderr
    alone = inside("run", "kd", "--prompts-unique", "-o", "run")
    assert alone.returncode == 2 and "--prompts-unique" in alone.stderr
    wrong = inside(*arguments(pipeline, "--prompts", "nowhere.txt", "-o", "run"))
    assert wrong.returncode == 2 and "nowhere.txt" in wrong.stderr
    hub = inside(*arguments(pipeline, "--prompts", "hf:org/nothing", "-o", "run"))
    assert hub.returncode in (1, 2) and "org/nothing" in hub.stderr
    assert all(len(done.stderr.splitlines()) <= 6 for done in (lacking, unread, alone, wrong, hub))
    assert not (tmp_path / "run").exists() and [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]
