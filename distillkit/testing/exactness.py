"""One seed, one result: whatever was drawn before, however a batch is split, wherever a training was stopped."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator

from distillkit.contracts.method import Method
from distillkit.engine.trainer import Stopped
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import BATCH, different, outputs_in, trainer_of, weights
from distillkit.testing.teachers import conditional


def steps_are_deterministic(method: type[Method]) -> None:
    """Two trainings from one seed are the same bits, whatever the global generator has drawn."""
    ends = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        trainer = trainer_of(method, conditional())
        torch.manual_seed(noise)
        for _ in range(2):
            trainer.train_step()
        ends.append(weights(trainer))
    if found := different(*ends):
        raise CheckFailure(
            f"two steps from one seed differ in {found}",
            "runs could not be reproduced or resumed",
            "draw by step.normal(purpose) and step.uniform(purpose), never from torch's global generator",
        )


def steps_do_not_depend_on_the_split(method: type[Method]) -> None:
    """A batch in two passes, as two processes would share it, gives the gradient of the batch in one."""
    ends = []
    for part in (None, BATCH // 2):
        trainer = trainer_of(
            method, conditional(), batch_per_device=part, clip_grad_norm=1e9, optimizer="adam", lr=1e-9
        )
        steps = trainer.recipe.student_every
        for _ in range(steps):
            trainer.train_step()
        moments = trainer._updaters["student"].state()[0]
        ends.append({name: value for name, value in moments.items() if name.endswith("exp_avg")})
    for name, whole in ends[0].items():
        scale = whole.abs().max().clamp(min=1e-8)
        if (whole - ends[1][name]).abs().max() > 1e-3 * scale:
            raise CheckFailure(
                "the gradient of a batch changes when the batch is split over passes or processes",
                "results would depend on the number of GPUs",
                "make the loss a mean over samples, without statistics over the batch; draw by step.normal and "
                "step.uniform, which know each sample's place",
            )


def resume_is_exact(method: type[Method]) -> None:
    """Stopped in the middle and resumed, a training ends with the same bits."""
    accelerator = Accelerator(cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = trainer_of(method, conditional(), accelerator=accelerator)
        whole.run(outputs_in(Path(folder) / "whole", accelerator))
        first, outputs = (
            trainer_of(method, conditional(), accelerator=accelerator),
            outputs_in(Path(folder), accelerator),
        )
        with contextlib.suppress(Stopped):
            first.run(outputs, should_stop=lambda: first.step == 3)
        second = trainer_of(method, conditional(), accelerator=accelerator)
        second.restore(outputs.checkpoints.load())
        second.run(outputs)
        if found := different(weights(whole), weights(second)):
            raise CheckFailure(
                f"after stopping at step 3 and resuming, {found} differ",
                "long trainings are interrupted, and a resumed one must be the same training",
                "keep state in learners or in networks that Objective.modules() names; derive the rest from the step",
            )
