"""What comes out: a student that stands alone, and that has moved to the teacher's distribution."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator

from distillkit.contracts.method import Method
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.embedded.mixture.data import MixturePoints
from distillkit.data.pairs import PairStore
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.embedded.mixture.protocol import density_ruler
from distillkit.runs.config import resolve
from distillkit.jobs.scores import student_pixels
from distillkit.students.artifact import StudentDescription, load_student, save_student
from distillkit.models.store.resolve import load_teacher
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import trainer_of
from distillkit.testing.teachers import conditional


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
    recipe = method().recipe(teacher, method.Config.model_validate(config.settings))
    # Points that the student is updated on.
    most = 15_000 * recipe.student_every
    training = config.training.model_copy(update={"duration": min(config.training.duration, most)})
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


def _divergence(student: StudentGenerator, teacher: Teacher) -> float:
    student = student.eval()
    cpu = torch.device("cpu")
    return density_ruler().score(student_pixels(student, teacher), student.denoiser, teacher.spec, cpu).value
