"""The checks. Each takes a method class and raises `CheckFailure`: what is wrong, why it matters, how to mend it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch import Tensor, nn

from distillkit.contracts.learner import Learner
from distillkit.contracts.method import Method
from distillkit.contracts.objective import Objective
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.data.mixture import MixturePoints
from distillkit.data.pairs import PairStore
from distillkit.engine.config import TrainingConfig
from distillkit.engine.losses import constant, loss_of
from distillkit.engine.trainer import Stopped, Trainer
from distillkit.errors import DistillkitError
from distillkit.evaluation.density import density_ruler
from distillkit.runs.config import resolve
from distillkit.runs.scores import student_pixels
from distillkit.students.artifact import StudentDescription, load_student, save_student
from distillkit.teachers.load import load_teacher
from distillkit.testing.stand import BATCH, all_evaluations, outputs_in, step_of, trainer_of, weights
from distillkit.testing.teachers import TEACHERS, conditional


class CheckFailure(AssertionError):
    """What a method breaks, why that matters, and how to mend it."""

    def __init__(self, what: str, why: str, how: str) -> None:
        super().__init__(f"{what}\n  why it matters: {why}\n  how to mend it: {how}")
        self.what, self.why, self.how = what, why, how


def config_round_trips(method: type[Method]) -> None:
    """The configuration survives JSON, refuses unknown keys, and explains itself."""
    try:
        default = method.Config()
    except ValidationError as error:
        raise CheckFailure(
            f"{method.name}'s Config has no defaults: {error.errors()[0]['loc']}",
            "`distillkit run` must work without options",
            "give every field a default that works",
        ) from error
    again = method.Config.model_validate(json.loads(default.model_dump_json()))
    if again != default:
        raise CheckFailure(
            "the configuration changes on its way through JSON",
            "runs save their configuration and are resumed and reproduced from it",
            "use types that pydantic writes and reads back: numbers, strings, lists, nested models",
        )
    try:
        method.Config.model_validate({"no_such_setting": 1})
    except ValidationError:
        pass
    else:
        raise CheckFailure(
            "the configuration accepts a key that it does not have",
            "a misspelt setting would be left out without a word",
            'inherit from distillkit.MethodConfig and keep its extra="forbid"',
        )
    if silent := [name for name, field in method.Config.model_fields.items() if not field.description]:
        raise CheckFailure(
            f"these settings have no description: {', '.join(silent)}",
            "descriptions are the help of the command line's options",
            'write Field(default, description="...") for each',
        )


def presets_are_valid(method: type[Method]) -> None:
    """Every preset's values are accepted, and say where they come from."""
    for preset in method.presets:
        for pattern in preset.teachers:
            try:
                resolve(method, options={"teacher": pattern.replace("*", "")})
            except DistillkitError as error:
                raise CheckFailure(
                    f"the preset {preset.name!r} is refused: {error}",
                    "everyone who names such a teacher gets this error",
                    "correct the preset's settings, training or pairs",
                ) from error
        if not preset.source:
            raise CheckFailure(
                f"the preset {preset.name!r} does not say where its numbers come from",
                "a reader cannot tell a paper's settings from a guess",
                'set source="paper, table" or "chosen for ..."',
            )


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
    if different := _different(*ends):
        raise CheckFailure(
            f"two steps from one seed differ in {different}",
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
        if different := _different(weights(whole), weights(second)):
            raise CheckFailure(
                f"after stopping at step 3 and resuming, {different} differ",
                "long trainings are interrupted, and a resumed one must be the same training",
                "keep state in learners or in networks that Objective.modules() names; derive the rest from the step",
            )


def needs_are_what_is_used(method: type[Method]) -> None:
    """Each objective and learner reads of the step what it declares, and nothing else."""
    trainer = trainer_of(method, conditional())
    for part in trainer.recipe.parts:
        step = step_of(trainer, part.needs)
        loss_of(part, step)
        used = {name for name in ("samples", "pairs", "pair_samples", "images") if name in vars(step)}
        # The pairs' noise is read on the way to the student's samples from it.
        declared = set(part.needs)
        if extra := used - declared - ({"pairs"} if "pair_samples" in declared else set()):
            raise CheckFailure(
                f"{part.name} reads step.{', step.'.join(sorted(extra))} without declaring it",
                "the engine opens sources and shares student passes by what is declared",
                f"needs = {tuple(sorted(declared | used))!r}",
            )
        if unread := declared - used:
            raise CheckFailure(
                f"{part.name} declares {', '.join(sorted(unread))} and never reads it",
                "the engine would make pairs, open images or run the student for nothing",
                f"needs = {tuple(sorted(declared & used))!r}",
            )


def every_pass_is_counted(method: type[Method]) -> None:
    """The engine knows every network that is evaluated, so the cost of the method is its true cost."""
    trainer = trainer_of(method, conditional())
    trainer._enter_stage(0)
    known = {"samples": 0}
    with all_evaluations() as seen:
        handles = [
            module.register_forward_pre_hook(
                lambda _, args: known.__setitem__("samples", known["samples"] + len(args[0]))
            )
            for module in trainer.roles().values()
        ]
        for _ in range(trainer.recipe.student_every):
            trainer.train_step()
        for handle in handles:
            handle.remove()
    if seen["samples"] > known["samples"]:
        raise CheckFailure(
            f"{seen['samples'] - known['samples']} of {seen['samples']} network evaluations are by networks that the "
            "engine does not know",
            "benchmarks give every method the same budget of network evaluations",
            "name every network that an objective owns in Objective.modules(); keep a learner's as its `denoiser`",
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


def students_load_and_sample(method: type[Method]) -> None:
    """The student on disk loads without the plugin and makes the samples of the one in memory."""
    teacher = conditional()
    trainer = trainer_of(method, teacher)
    while trainer.step < trainer.config.steps:
        trainer.train_step()
    student = trainer.ema
    with tempfile.TemporaryDirectory() as folder:
        description = StudentDescription(
            distillkit="0", method=method.name, method_package="", settings={}, teacher=teacher.spec,
            sampler=student.sampler.model_dump(mode="json"), nfe=1, images_seen=1,
        )  # fmt: skip
        try:
            save_student(Path(folder), student, description)
            loaded = load_student(folder)
            pixels = loaded(4, seed=0)
        except Exception as error:
            raise CheckFailure(
                f"the student cannot be saved, loaded and sampled: {type(error).__name__}: {error}",
                "a student is used where neither the plugin nor the teacher is installed",
                "use a sampler of distillkit or distillkit.diffusion, and StudentGenerator.from_teacher",
            ) from error
        if pixels.shape != (4, *teacher.spec.shape):
            raise CheckFailure(
                f"the student's samples have the shape {tuple(pixels.shape)}",
                "samples are the teacher's shape everywhere",
                "let the sampler return (B, C, H, W)",
            )
        same = all(
            torch.equal(value, student.state_dict()[key]) for key, value in loaded.generator.state_dict().items()
        )
        if not same:
            raise CheckFailure(
                "the loaded weights are not the saved ones", "students are files", "keep state in weights"
            )


def moves_to_the_teachers_distribution(method: type[Method]) -> None:
    """On the mixture, where the truth is known, a short training brings the student much closer to it."""
    teacher, cpu = load_teacher("mixture"), torch.device("cpu")
    config, _ = resolve(method, options={"teacher": "mixture"})
    training = config.training.model_copy(update={"duration": min(config.training.duration, 40_000)})
    recipe = method().recipe(teacher, method.Config.model_validate(config.settings))
    pairs = None
    with tempfile.TemporaryDirectory() as folder:
        if {"pairs", "pair_samples"} & recipe.needs:
            store = PairStore(teacher, steps=18, root=Path(folder))
            count = min(config.pairs.count, 1024)
            store.make(count, cpu, advance=lambda made: None)
            pairs = store.open(count, cpu)
    trainer = Trainer(
        recipe, teacher, TrainingConfig.model_validate(training.model_dump()), Accelerator(cpu=True), seed=0,
        pairs=pairs, images=MixturePoints(cpu),
    )  # fmt: skip
    last = next((stage.sampler for stage in reversed(recipe.stages) if stage.sampler), recipe.student.sampler)
    before = _divergence(StudentGenerator.from_teacher(teacher, last), teacher)
    while trainer.step < training.steps:
        trainer.train_step()
    after = _divergence(trainer.ema, teacher)
    if not after < 0.5 * before:
        raise CheckFailure(
            f"after {training.duration:,} points the divergence to the mixture is {after:.3g}, "
            f"before it was {before:.3g}",
            "a method that cannot follow eight Gaussians in the plane will not follow images",
            "see that the loss has the right sign and weight; a preset for the teacher 'mixture' may set its own pace",
        )


def _moves(method: type[Method]) -> bool:
    """Whether the student changes in a few steps: two scores that start alike have no difference in the first."""
    trainer = trainer_of(method, conditional(), weight_decay=0.0)
    before = weights(trainer)
    for _ in range(3 * trainer.recipe.student_every):
        trainer.train_step()
    return "student" in _different(before, weights(trainer))


def _divergence(student: StudentGenerator, teacher: Teacher) -> float:
    student = student.eval()
    cpu = torch.device("cpu")
    return density_ruler().score(student_pixels(student, teacher), student.denoiser, teacher.spec, cpu).value


def _has_gradient(module: nn.Module | Objective | Learner) -> bool:
    assert isinstance(module, nn.Module)
    return any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in module.parameters())


def _different(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    """Names of the networks that differ; empty if none does."""
    names = {name.partition(".")[0] for name in a if not torch.equal(a[name], b[name])}
    return ", ".join(sorted(names))


CHECKS: Mapping[str, Callable[[type[Method]], None]] = {
    check.__name__: check
    for check in (
        config_round_trips, presets_are_valid, recipe_builds_for_every_teacher, gradients_reach_the_student_alone,
        learners_leave_the_student_alone, steps_are_deterministic, steps_do_not_depend_on_the_split, resume_is_exact,
        needs_are_what_is_used, every_pass_is_counted, works_in_bfloat16, students_load_and_sample,
        moves_to_the_teachers_distribution,
    )
}  # fmt: skip
"""All checks by name, the cheap ones first."""
