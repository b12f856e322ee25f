"""Power-function averages in trainings: what they hold, their snapshots, and that both are the same after a kill."""

import shutil

import pytest
import torch
from pydantic import ValidationError

from distillkit import Stage, UsageError
from distillkit.engine.config import TrainingConfig
from distillkit.engine.learning import LearnerTrainer
from distillkit.engine.loop import Stopped
from distillkit.engine.networks import power_name
from distillkit.power_ema import Profile, power_decay
from distillkit.students.snapshots import kept_averages
from tests.engine.conftest import Toy, assert_equal_weights, weights

KEPT = {"ema_sigmas": (0.05, 0.1), "snapshot_every": 32}


def contents(folder):
    """Bytes of all files of all snapshots."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_averages_are_those_of_the_weights_and_change_nothing_else(bench):
    plain = bench.trainer(bench.toy())
    trainer, by_hand = bench.trainer(bench.toy(), **KEPT), {}
    for step in range(1, 7):
        for one in (plain, trainer):
            one.train_step()
        now = next(trainer.student.parameters()).detach().clone()
        for sigma in (0.05, 0.1):
            beta = power_decay(sigma, 16, 16 * step)
            by_hand[sigma] = beta * by_hand.get(sigma, torch.zeros_like(now)) + (1 - beta) * now
    for sigma, expected in by_hand.items():
        found = next(trainer.networks.powers[sigma].parameters())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert not found.requires_grad and not torch.equal(found, next(trainer.ema.parameters()))
    own = {k: v for k, v in weights(trainer).items() if not k.startswith("average-")}
    assert_equal_weights(own, weights(plain))


def test_snapshots_are_kept_at_their_intervals_and_say_of_what_they_are(bench):
    trainer, outputs = bench.trainer(**KEPT), bench.outputs(described={"teacher": {"name": "x"}})
    trainer.run(outputs)
    folder = bench.folder / "run" / "snapshots"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:09d}" for step in (2, 4, 6)]
    found = kept_averages(folder)
    assert [(one.images, one.since, one.profile) for one in found.averages] == [
        (images, 0, Profile(images, sigma)) for images in (32, 64, 96) for sigma in (0.05, 0.1)
    ]
    assert found.teacher == {"name": "x"} and found.student is None
    last = {f"denoiser.{name}": held.read() for name, held in found.averages[-1].weights.items()}
    assert_equal_weights(last, dict(trainer.networks.powers[0.1].state_dict()))
    # Second names of a checkpoint's files: nothing is written twice.
    assert (folder / "step-000000006" / "average-0.1.safetensors").stat().st_nlink > 1
    early = kept_averages(folder, 64).averages
    assert len(early) == 4 and early[-1].images == 64
    with pytest.raises(UsageError, match=r"--at 50: no averages were kept then .* 32, 64, 96"):
        kept_averages(folder, 50)


def test_a_training_that_was_killed_keeps_the_same_snapshots(bench):
    """Killed before a snapshot was kept, after a later one, and once more at the end."""
    whole = bench.outputs("whole")
    bench.trainer(**KEPT, keep_checkpoints=6).run(whole)
    expected, place = contents(bench.folder / "whole" / "snapshots"), bench.folder / "killed"
    trainer, outputs = bench.trainer(**KEPT, keep_checkpoints=6), bench.outputs("killed")
    with pytest.raises(Stopped):
        trainer.run(outputs, should_stop=lambda: trainer.step == 5)
    # As if the kill had come between the checkpoint of step 4 and its snapshot.
    for name in ("checkpoints/step-000000005", "snapshots/step-000000004"):
        shutil.rmtree(place / name)
    (place / "snapshots" / ".step-000000004.123").mkdir()
    # And a snapshot of a step that is trained again.
    shutil.copytree(place / "snapshots" / "step-000000002", place / "snapshots" / "step-000000006")
    again, outputs = bench.trainer(**KEPT, keep_checkpoints=6), bench.outputs("killed")
    again.resume(outputs)
    assert again.step == 4 and sorted(p.name for p in (place / "snapshots").iterdir()) == [
        "step-000000002", "step-000000004"
    ]  # fmt: skip
    again.run(outputs)
    assert contents(place / "snapshots") == expected


def test_a_stage_begins_its_averages_anew(bench):
    recipe = bench.toy(Toy(), stages=(Stage("first", share=0.5), Stage("second", share=0.5)))
    bench.trainer(recipe, **KEPT, checkpoint_every=16).run(bench.outputs())
    found = kept_averages(bench.folder / "run" / "snapshots").averages
    assert [(one.images, one.since, one.profile.time) for one in found if one.profile.sigma_rel == 0.1] == [
        (32, 0, 32), (64, 48, 16), (96, 48, 48)
    ]  # fmt: skip


def test_averages_of_a_student_that_is_updated_every_other_step(bench):
    trainer = bench.trainer(bench.toy(student_every=2), **{**KEPT, "snapshot_every": 48})
    trainer.run(bench.outputs())
    found = kept_averages(bench.folder / "run" / "snapshots").averages
    assert [(one.images, one.profile.time) for one in found if one.profile.sigma_rel == 0.1] == [(48, 32), (96, 96)]


def test_without_them_nothing_is_kept_and_odd_widths_are_refused(bench):
    bench.trainer(bench.toy()).run(bench.outputs())
    assert not (bench.folder / "run" / "snapshots").exists()
    for sigmas, said in (
        ("0.5", "between 0 and"),
        ("0", "between 0 and"),
        ("0.1,0.1", "different ones"),
        ("x", "number"),
    ):
        with pytest.raises(ValidationError, match=said):
            TrainingConfig(ema_sigmas=sigmas)
    assert TrainingConfig(ema_sigmas="0.05,0.10").ema_sigmas == (0.05, 0.1) and power_name(0.05) == "average-0.05"
    with pytest.raises(UsageError, match="--ema-sigmas keeps averages of networks that denoise"):
        LearnerTrainer(
            bench.recipe().learners[0], bench.config(**KEPT), accelerator=bench.accelerator, seed=0, sources={}
        )
