"""Where the truth is known: a short training on a teacher whose distribution can be computed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.method import Method
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.sampler import Sampler
from distillkit.contracts.source import Batches, Images, SourceJob
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.evaluation.generator import Generator, student_generator
from distillkit.evaluation.pipeline import measure
from distillkit.evaluation.presets import default_protocol, load_measure
from distillkit.evaluation.record import Subject
from distillkit.jobs.recipe import recipe_of
from distillkit.models.store.card import TeacherOffer
from distillkit.registry import Installed, registry
from distillkit.runs.config import RunConfig, resolve
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import CPU, Settings, source_classes

UPDATES, UPDATES_OF = 200, 15_000
"""Of the student, and the samples in them; the larger."""
SHARES = (0.25, 0.5, 1.0)
"""Of the training, after which the student is measured: one that is close enough by then has shown it. A training of
several stages is not over before the last, and has other samplers until then."""
DATA = 4096


def moves_to_the_teachers_distribution(method: type[Method], settings: Settings) -> None:
    """A short training brings the student much closer to the known distribution, about as close as one Gaussian."""
    teacher = _known_exactly()
    name = teacher.spec.name
    config, _ = resolve(method, teacher_name=name, options={"settings": dict(settings)})
    recipe = recipe_of(config, Installed(method, method.name, method.__module__, ""), teacher)
    for objective in recipe.objectives:
        objective.prepare()
    samples = max(UPDATES_OF, UPDATES * config.training.batch)
    duration = min(config.training.duration, samples * recipe.student_every)
    training = config.training.model_copy(update={"duration": duration, "channels_last": "off"})
    before, gaussian = _untrained_divergence(recipe.final_sampler), _gaussian_divergence()
    with tempfile.TemporaryDirectory() as folder, own_cache(Path(folder)):
        trainer = Trainer(
            recipe, teacher, TrainingConfig.model_validate(training.model_dump()), accelerator=Accelerator(cpu=True),
            seed=0, sources=_opened(recipe, teacher, config),
        )  # fmt: skip
        for share in SHARES if len(recipe.stages) == 1 else SHARES[-1:]:
            while trainer.step < share * trainer.config.steps:
                trainer.train_step()
            if (after := _divergence(trainer.ema, teacher)) < min(0.5 * before, 1.5 * gaussian):
                return
    raise CheckFailure(
        f"after {duration:,} samples the divergence from the known distribution is {after:.3g}; before it was "
        f"{before:.3g}, and one Gaussian of the data's mean and covariance has {gaussian:.3g}",
        "a method that cannot follow points in the plane will not follow images",
        f"see that the loss has the right sign, weight and target; a preset for {name!r} may set its own pace",
    )


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Nothing is left in the user's cache."""
    before = os.environ.get("DISTILLKIT_CACHE")
    os.environ["DISTILLKIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISTILLKIT_CACHE"]
        else:
            os.environ["DISTILLKIT_CACHE"] = before


def _known_exactly() -> Teacher:
    """The first teacher whose distribution is known."""
    offers = [offer.value for offer in registry().named("teachers").values()]
    return next(offer() for offer in offers if isinstance(offer, TeacherOffer) and offer.card.exact)


def _opened(recipe: Recipe, teacher: Teacher, config: RunConfig) -> Mapping[type, Batches[Any]]:
    """The real sources; few pairs, since they are only points."""
    opened = {}
    for source in source_classes(recipe.needs):
        values = dict(config.sources.get(source.name, {}))
        if "count" in source.Config.model_fields:
            values["count"] = min(values.get("count", 1024), 1024)
        opened[source.batch_type] = source(teacher, source.Config.model_validate(values)).open(SourceJob(CPU))
    return opened


def _divergence(student: StudentGenerator, teacher: Teacher) -> float:
    subject = Subject(kind="student", name="checked")
    return _figure(student_generator(student.eval(), teacher.conditioner, teacher.codec, subject), teacher)


_UNTRAINED: dict[str, float] = {}
"""By sampler: it is the same for all methods that have the same."""


def _untrained_divergence(sampler: Sampler) -> float:
    """Of the teacher's network, sampled as the student will be."""
    key = f"{type(sampler).__qualname__} {sampler.model_dump_json()}"
    if key not in _UNTRAINED:
        teacher = _known_exactly()
        student = StudentGenerator(teacher.copy_denoiser(), sampler, teacher.spec.shape)
        _UNTRAINED[key] = _divergence(student, teacher)
    return _UNTRAINED[key]


@cache
def _gaussian_divergence() -> float:
    """Of one Gaussian with the data's mean and covariance."""
    teacher = _known_exactly()
    assert teacher.images is not None
    data: Images = teacher.images(CPU).batch(SampleRNG(0), 0, range(DATA))
    mean, root = data.sample.mean(0), torch.linalg.cholesky(data.sample.T.cov())

    def generate(noise: Tensor, condition: Condition, seeds: list[int]) -> Tensor:
        return mean + noise @ root.T

    subject = Subject(kind="student", name="one Gaussian")
    shape = teacher.spec.shape
    return _figure(Generator(subject, generate, teacher.denoiser, teacher.conditioner, teacher.codec, shape), teacher)


def _figure(generator: Generator, teacher: Teacher) -> float:
    record = measure(generator, load_measure(default_protocol(teacher)), device=CPU)
    return record.figures[record.label].value
