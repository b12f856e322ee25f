"""Where gradients go, for every kind of teacher and in bf16."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from distillkit.contracts.learner import Learner
from distillkit.contracts.method import Method
from distillkit.contracts.objective import Objective
from distillkit.engine.losses import constant, loss_of
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import different, step_of, trainer_of, weights
from distillkit.testing.teachers import TEACHERS, conditional


def recipe_builds_for_every_teacher(method: type[Method]) -> None:
    """The recipe is made and takes a step on class-conditional, unconditional and text-conditioned latent teachers."""
    for kind, make in TEACHERS.items():
        try:
            trainer_of(method, make()).train_step()
        except Exception as error:
            raise CheckFailure(
                f"on a {kind} teacher: {type(error).__name__}: {error}",
                "users bring teachers of every kind, and methods need not know which",
                "take shapes from teacher.spec.shape, hand conditions through, and use teacher(...) for guidance",
            ) from error


def gradients_reach_the_student_alone(method: type[Method]) -> None:
    """The objectives move the student; the teacher, frozen copies and learners get no gradient from them."""
    trainer = trainer_of(method, conditional())
    step = step_of(trainer)
    learnt = [p for learner in trainer.recipe.learners for p in learner.parameters() if p.requires_grad]
    with constant(learnt):
        loss = sum((loss_of(o, step) * o.weight for o in trainer.recipe.objectives), torch.zeros(()))
    if not loss.requires_grad:
        raise CheckFailure(
            "no gradient flows from the objectives to the student",
            "the student would never learn",
            "compute the loss from step.samples, step.pair_samples or step.student.denoiser, not detached",
        )
    loss.backward()
    frozen = {"teacher": trainer.teacher.denoiser} | trainer._owned()
    if hit := [name for name, module in frozen.items() if _has_gradient(module)]:
        raise CheckFailure(
            f"the objectives send gradients into {', '.join(hit)}",
            "frozen networks would cost memory and backward passes, and a moving target would be trained",
            "evaluate them under torch.no_grad(), or requires_grad_(False) where their inputs need gradients",
        )
    if not _has_gradient(trainer.student) and not _moves(method):
        raise CheckFailure(
            "the objectives' gradient is zero for every weight of the student",
            "the student would never learn",
            "see that the loss depends on the student's output and is not constant",
        )


def learners_leave_the_student_alone(method: type[Method]) -> None:
    """A learner's loss trains the learner and sends nothing into the student or the teacher."""
    trainer = trainer_of(method, conditional())
    for learner in trainer.recipe.learners:
        loss_of(learner, step_of(trainer)).backward()
        if not _has_gradient(learner):
            raise CheckFailure(
                f"the loss of the learner {learner.name} has no gradient for its own weights",
                "it would stay as it is",
                "compute the loss from the learner's own network",
            )
        for name, module in (("student", trainer.student), ("teacher", trainer.teacher.denoiser)):
            if _has_gradient(module):
                raise CheckFailure(
                    f"the loss of the learner {learner.name} sends gradients into the {name}",
                    "the student would be trained to please its critics",
                    "detach what it takes from the step: step.samples.detach()",
                )


def works_in_bfloat16(method: type[Method]) -> None:
    """A step under bf16 autocast gives finite losses and weights."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)
    try:
        trainer = trainer_of(method, conditional(), accelerator=Accelerator(cpu=True, mixed_precision="bf16"),
                             precision="bf16")  # fmt: skip
        try:
            for _ in range(trainer.recipe.student_every):
                trainer.train_step()
            broken = [name for name, value in weights(trainer).items() if not torch.isfinite(value).all()]
        except Exception as error:
            raise _bf16(f"{type(error).__name__}: {error}") from error
        if broken:
            raise _bf16(f"{broken[0]} is not finite")
    finally:
        AcceleratorState._reset_state(reset_partial_state=False)


def _bf16(what: str) -> CheckFailure:
    return CheckFailure(
        f"under bf16: {what}",
        "large teachers are distilled in bf16",
        "take norms, means and weights in float32 (x.float()), and let dtypes follow the inputs'",
    )


def _moves(method: type[Method]) -> bool:
    """Whether the student changes in a few steps: two scores that start alike have no difference in the first."""
    trainer = trainer_of(method, conditional(), weight_decay=0.0)
    before = weights(trainer)
    for _ in range(3 * trainer.recipe.student_every):
        trainer.train_step()
    return "student" in different(before, weights(trainer))


def _has_gradient(module: nn.Module | Objective | Learner) -> bool:
    assert isinstance(module, nn.Module)
    return any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in module.parameters())
