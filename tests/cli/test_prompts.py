"""Prompts of runs and samples, by the commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit import SampleRNG, UsageError, load_student, load_teacher
from distillkit.models.diffusers import hub
from tests.models.pipelines import stable_diffusion

LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("text") / "tiny-text")


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"a {letter}\n" for letter in LETTERS) + "x " * 5000 + "\n")
    return tmp_path / "prompts.txt"


def pictures(folder, count):
    return np.stack([np.asarray(Image.open(folder / f"{k:06d}.png")) for k in range(count)])


def arguments(pipeline, *more):
    return (
        "run", "kd", "--teacher", pipeline, "--protocol", "none", "--duration", "16", "--batch", "8", "--pairs-count",
        "8", "--pairs-steps", "1", "--pairs-solver", "ddim", "--channels-last", "off", *more,
    )  # fmt: skip


def test_a_run_with_prompts_and_the_same_ones_when_it_goes_on(pipeline, listed, inside, tmp_path):
    plan = inside(*arguments(pipeline, "--prompts", listed, "--dry-run"))
    assert plan.returncode == 0 and "11 prompts from" in " ".join(plan.stdout.split()), plan.stderr
    assert "text encodings │ 11 prompts" in plan.stdout.replace("  ", " ")
    assert not (tmp_path / "run").exists()
    done = inside(*arguments(pipeline, "--prompts", listed, "-o", "run", "--prompts-encodings", "store"))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert f"prompts: 11 prompts from {listed}" in said
    assert said.count("longer than the text encoder reads") == 1 and "warning: 1 of 11 prompts" in said
    assert "text encodings: 11 prompts" in said and "11 to make" in said
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert inputs["prompts"].startswith("11 of ")
    described = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert described["conditioner"]["examples"][:2] == ["a a", "a b"]
    assert inputs["prompts"].split()[-1] == described["conditioner"]["listed"][:16]
    student = load_student(tmp_path / "run")
    made = student(seed=3, prompts=["a b", "something new"])
    assert made.shape == (2, 3, 16, 16)
    assert torch.equal(made[:1], student(1, seed=3, keys=[1])), "it is prompt 1 of the list"
    assert not torch.equal(made[1:], student(2, seed=3, keys=[1, 1])[1:])
    for wrong in ({"prompts": ["a"], "keys": [0]}, {}):
        with pytest.raises(UsageError):
            student(**wrong)
    drawn = inside("sample", "run", "--seed", "3", "--prompt", "a b", "--prompt", "something new", "--output", "two")
    assert drawn.returncode == 0, drawn.stderr
    assert np.array_equal(pictures(tmp_path / "two", 2), made.permute(0, 2, 3, 1).numpy())
    assert (tmp_path / "two" / "000001.txt").read_text() == "something new\n"
    first = inside("sample", "run", "--seed", "3", "--prompts", listed, "--num", "2", "--output", "first")
    assert first.returncode == 0, first.stderr
    assert [(tmp_path / "first" / f"00000{k}.txt").read_text() for k in (0, 1)] == ["a a\n", "a b\n"]
    refusals = {"--guidance": "2", "--negative": "x", "--solver": "euler", "--steps": "2"}
    for option, value in refusals.items():
        refused = inside("sample", "run", "--prompt", "a", option, value)
        said = "2 evaluations: OneStep" if option == "--steps" else option
        assert refused.returncode == 2 and said in refused.stderr
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


def test_a_teacher_draws_prompts_by_the_command_as_in_python(pipeline, inside, tmp_path):
    options = (
        "--steps",
        "2",
        "--solver",
        "euler",
        "--guidance",
        "3",
        "--negative",
        "ugly",
        "--seed",
        "5",
        "--num",
        "3",
    )
    done = inside("teachers", "sample", pipeline, "--prompt", "a cat", "--prompt", "", *options, "--output", "many")
    assert done.returncode == 0 and "3 samples, 4 network evaluation(s)" in done.stdout, done.stderr
    teacher = load_teacher(str(pipeline))
    encoded = [
        teacher.conditioner.encode(teacher.conditioner.parse(texts)) for texts in (["a cat", "", "a cat"], ["ugly"] * 3)
    ]
    noise = SampleRNG(5).normal("sample", 0, range(3), teacher.spec.shape)
    latents = teacher.sample(noise, encoded[0], steps=2, solver="euler", guidance=3.0, negative=encoded[1])
    decoded = teacher.codec.decode(latents)
    assert decoded.dtype == torch.uint8
    assert np.array_equal(pictures(tmp_path / "many", 3), decoded.permute(0, 2, 3, 1).numpy())
    grid = inside("sample", pipeline, "--prompt", "a cat", "--steps", "1")
    assert grid.returncode == 0
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape[0] > picture.shape[1] >= 112, "there is text under it"
    assert (picture[-5:] == 255).mean() > 0.5 and (picture[picture.shape[1] :] < 100).any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--prompt"),
        (("--prompt", "a", "--prompts", "b.txt"), "give one of them"),
        (("--prompt", "a", "--labels", "3"), "give one of them"),
        (("--prompt", "a", "--negative", "b"), "--guidance"),
        (("--prompt", "a", "--nfe", "3", "--steps", "3"), "give one of them"),
        (("--prompt", "a", "--solver", "magic"), "heun, euler, ddim"),
        (("--prompt", "x" * 100_001), "100,001 characters"),
        (("--prompts", "nowhere.txt"), "nowhere.txt"),
        (("--prompts", "x" * 5000), "--prompts"),
        (("--prompt", "a", "--steps", "20000"), "--steps"),
    ],
)
def test_what_cannot_be_drawn_is_said(pipeline, inside, tmp_path, options, says):
    done = inside("teachers", "sample", pipeline, *options)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr) < 1000
    assert not list(tmp_path.iterdir())


def test_classes_are_no_prompts(inside):
    assert "is not a class" in inside("sample", "digits", "--prompt", "a cat").stderr


def test_captions_are_prompts_and_images_latents(pipeline, inside, tmp_path):
    (tmp_path / "images").mkdir()
    for k, letter in enumerate(LETTERS):
        Image.new("RGB", (16, 16), (20 * k, 0, 90)).save(tmp_path / "images" / f"{k}.png")
        (tmp_path / "images" / f"{k}.txt").write_text(f"a {letter}")
    done = inside(
        "run", "consistency", "--teacher", pipeline, "--data", "images", "--data-flip", "--protocol", "none",
        "--duration", "16", "--batch", "8", "--channels-last", "off", "-o", "run",
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stderr
    assert "prompts: 10 prompts from the captions in images" in said and "with captions" in said
    assert "latents (means and deviations" in said and "10 to make" in said
    described = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert described["conditioner"]["examples"] == [f"a {letter}" for letter in LETTERS]
    (tmp_path / "images" / "3.txt").write_text("another")
    other = inside("run", "consistency", "--resume", "run", "--duration", "32")
    assert other.returncode == 2 and "prompts:" in other.stderr and "data:" in other.stderr


def test_a_model_of_the_hub_that_lacks_prompts_is_refused_before_it_is_loaded(pipeline, inside, listed, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "cached", lambda name: None)
    monkeypatch.setattr(hub, "snapshot", lambda name, weights=True: (asked.append(weights), pipeline)[1])
    lacking = inside("run", "kd", "--teacher", "hf:org/text", "-o", "run")
    assert lacking.returncode == 2 and "needs prompts" in lacking.stderr and asked == [False]


def test_a_plan_with_prompts_of_the_hub_downloads_nothing(pipeline, inside, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    plan = inside(*arguments(pipeline, "--prompts", "hf:org/prompts", "--dry-run"))
    assert plan.returncode == 0, plan.stderr
    assert "hf:org/prompts" in plan.stdout and "not known yet" in plan.stdout and not list(tmp_path.iterdir())
