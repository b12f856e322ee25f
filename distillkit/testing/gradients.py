"""Where gradients go, for every kind of teacher and in bf16."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from distillkit.contracts.method import Method
from distillkit.engine.losses import loss_of
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import Settings, has_gradient, parts_of
from distillkit.testing.teachers import TEACHERS, conditional, smallest
from distillkit.testing.training import different, trainer_of, weights


def recipe_builds_for_every_teacher(method: type[Method], settings: Settings) -> None:
    """The recipe is made and takes a step on teachers of every kind: images, latents, video, points; edm, vp, flow."""
    for kind, make in TEACHERS.items():
        try:
            trainer_of(method, make(), settings).train_step()
        except Exception as error:
            raise CheckFailure(
                f"on a {kind} teacher: {type(error).__name__}: {error}",
                "users bring teachers of every kind, and methods need not know which",
                "take shapes from teacher.spec.shape, levels from teacher.schedule, scale samples by "
                "per_sample(values, x), hand conditions through, and use teacher(...) for guidance",
            ) from error


def gradients_reach_the_student_alone(method: type[Method], settings: Settings) -> None:
    """The objectives move the student; the teacher, frozen copies and learners get no gradient from them."""
    # Two scores that start alike have no difference yet: the networks are where training has begun.
    parts = parts_of(method, smallest(), settings, apart=True)
    loss = parts.student_loss(parts.step())
    if not loss.requires_grad:
        raise CheckFailure(
            "no gradient flows from the objectives to the student",
            "the student would never learn",
            "compute the loss from step.samples, step.pair_samples or step.student.denoiser, not detached",
        )
    loss.backward()
    learners = {learner.name: learner for learner in parts.recipe.learners}
    if hit := [n for n, m in {"teacher": parts.teacher.denoiser, **learners, **parts.owned}.items() if has_gradient(m)]:
        raise CheckFailure(
            f"the objectives send gradients into {', '.join(hit)}",
            "frozen networks would cost memory and backward passes, and a moving target would be trained",
            "evaluate them under torch.no_grad(), or requires_grad_(False) where their inputs need gradients",
        )
    if not has_gradient(parts.recipe.student):
        raise CheckFailure(
            "the objectives' gradient is zero for every weight of the student",
            "the student would never learn",
            "see that the loss depends on the student's output and is not constant",
        )
    for objective in parts.recipe.objectives:
        if objective.weight and not parts.student_loss(parts.step(), [objective]).requires_grad:
            raise CheckFailure(
                f"no gradient flows from the objective {objective.name} to the student",
                "this term of the loss would be a constant",
                "compute it from step.samples, step.pair_samples or step.student.denoiser, not detached",
            )


def learners_leave_the_student_alone(method: type[Method], settings: Settings) -> None:
    """A learner's loss trains the learner and sends nothing into the student or the teacher."""
    parts = parts_of(method, smallest(), settings, apart=True)
    for learner in parts.recipe.learners:
        loss_of(learner, parts.step()).backward()
        if not has_gradient(learner):
            raise CheckFailure(
                f"the loss of the learner {learner.name} has no gradient for its own weights",
                "it would stay as it is",
                "compute the loss from the learner's own network",
            )
        others = {"student": parts.recipe.student, "teacher": parts.teacher.denoiser, **parts.owned}
        if hit := [name for name, module in others.items() if has_gradient(module)]:
            raise CheckFailure(
                f"the loss of the learner {learner.name} sends gradients into the {hit[0]}",
                "the student would be trained to please its critics",
                "detach what it takes from the step: step.samples.detach()",
            )


def works_in_bfloat16(method: type[Method], settings: Settings) -> None:
    """A step under bf16 autocast gives finite losses and weights, near those of float32."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        trainer = trainer_of(method, conditional(), settings, accelerator=accelerator, precision="bf16")
        before = weights(trainer)
        try:
            for _ in range(2 * trainer.recipe.student_every):
                trainer.train_step()
        except Exception as error:
            raise _bf16(f"{type(error).__name__}: {error}") from error
        after = weights(trainer)
        if broken := [name for name, value in after.items() if not torch.isfinite(value).all()]:
            raise _bf16(f"{broken[0]} is not finite")
        if "student" not in different(before, after):
            raise _bf16("the student does not change in two of its updates")
    finally:
        AcceleratorState._reset_state(reset_partial_state=False)


def _bf16(what: str) -> CheckFailure:
    return CheckFailure(
        f"under bf16: {what}",
        "large teachers are distilled in bf16",
        "take norms, means and weights in float32 (x.float()), and let dtypes follow the inputs'",
    )
