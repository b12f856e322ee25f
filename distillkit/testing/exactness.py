"""One seed, one result: whatever was drawn before, however a batch is split, wherever a training was stopped."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillkit.contracts.method import Method
from distillkit.engine.loop import Stopped
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import BATCH, Settings
from distillkit.testing.teachers import smallest
from distillkit.testing.training import different, outputs_in, trainer_of, weights


def steps_are_deterministic(method: type[Method], settings: Settings) -> None:
    """Two trainings from one seed are the same bits, whatever the global generator has drawn."""
    ends = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        trainer = trainer_of(method, smallest(), settings)
        torch.manual_seed(noise)
        for _ in range(max(2, trainer.recipe.student_every)):
            trainer.train_step()
        ends.append(weights(trainer))
    if found := different(*ends):
        raise CheckFailure(
            f"steps from one seed differ in {found}",
            "runs could not be reproduced or resumed",
            "draw by step.normal(purpose) and step.uniform(purpose), never from torch's global generator",
        )


def steps_do_not_depend_on_the_split(method: type[Method], settings: Settings) -> None:
    """A batch in two passes, as two processes would share it, gives the gradient of the batch in one."""
    # Rounding may take one number over a kink, of a leaky ReLU for one, and change the gradient by a step. What depends
    # on the split does so for every seed.
    if all(name := _changed_by_the_split(method, settings, seed) for seed in (0, 1)):
        raise CheckFailure(
            f"the gradient of a batch changes when the batch is split over passes or processes ({name})",
            "results would depend on the number of GPUs",
            "make the loss a mean over samples, without statistics over the batch; draw by step.normal and "
            "step.uniform, which know each sample's place",
        )


def _changed_by_the_split(method: type[Method], settings: Settings, seed: int) -> str:
    """The first weight whose gradient differs; "" where none does."""
    found = []
    for part in (None, BATCH // 2):
        trainer = trainer_of(method, smallest(), settings, seed=seed, batch_per_device=part, lr=1e-9)
        trained: dict[str, nn.Module] = {"student": trainer.student}
        trained |= {learner.name: learner for learner in trainer.recipe.learners}
        with contextlib.ExitStack() as stack:
            gradients = {name: stack.enter_context(_gradients(module)) for name, module in trained.items()}
            # Twice, for scores that start alike have no difference in the student's first update.
            for _ in range(2 * trainer.recipe.student_every):
                trainer.train_step()
        found.append({f"{name}.{key}": g for name, module in gradients.items() for key, g in module.items()})
    for name, whole in found[0].items():
        scale = whole.abs().max().clamp(min=1e-7)
        if (whole - found[1].get(name, torch.zeros(()))).abs().max() > 1e-3 * scale:
            return name
    return ""


def resume_is_exact(method: type[Method], settings: Settings) -> None:
    """Stopped in the middle and resumed, a training ends with the same bits."""
    accelerator = Accelerator(cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = trainer_of(method, smallest(), settings, accelerator=accelerator)
        whole.run(outputs_in(Path(folder) / "whole", accelerator))
        first = trainer_of(method, smallest(), settings, accelerator=accelerator)
        outputs = outputs_in(Path(folder) / "stopped", accelerator)
        with contextlib.suppress(Stopped):
            first.run(outputs, should_stop=lambda: first.step == 3)
        second = trainer_of(method, smallest(), settings, accelerator=accelerator)
        second.restore(outputs.checkpoints.load())
        second.run(outputs)
        if found := different(weights(whole), weights(second)):
            raise CheckFailure(
                f"after stopping at step 3 and resuming, {found} differ",
                "long trainings are interrupted, and a resumed one must be the same training",
                "keep state in learners or in networks that Objective.modules() names; derive the rest from the step",
            )


@contextlib.contextmanager
def _gradients(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The sum of all gradients that reach each weight while the context lasts, before they are clipped."""
    total: dict[str, Tensor] = {}

    def adder(name: str):  # type: ignore[no-untyped-def]
        def add(gradient: Tensor) -> None:
            total[name] = total.get(name, torch.zeros_like(gradient)) + gradient.detach()

        return add

    handles = [p.register_hook(adder(name)) for name, p in module.named_parameters() if p.requires_grad]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()
