"""The real job from end to end, on teachers of every kind, and on one whose distribution is known."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from distillkit.contracts.method import Method
from distillkit.contracts.teacher import Teacher
from distillkit.jobs.api import distil, evaluate
from distillkit.jobs.run import Run
from distillkit.models.store.card import TeacherOffer
from distillkit.registry import registry
from distillkit.runs.config import resolve
from distillkit.students.artifact import load_student
from distillkit.testing.failure import CheckFailure
from distillkit.testing.protocol import NAME
from distillkit.testing.setup import BATCH, Settings, recipe_of, settings_of
from distillkit.testing.teachers import TEACHERS

POINTS = 15_000
"""Points of the known distribution that the student is updated on."""


def runs_end_to_end(method: type[Method], settings: Settings) -> None:
    """The real job on teachers of every kind: previews, checkpoints, a student that is saved, loaded, sampled and
    measured, with one figure by every way."""
    for kind, make in TEACHERS.items():
        with tempfile.TemporaryDirectory() as folder, _own_cache(Path(folder) / "cache"):
            teacher = make()
            steps = 4 * recipe_of(method, teacher, settings).student_every
            try:
                run = distil(
                    method, teacher, output_dir=Path(folder) / "run", quiet=True, device="cpu", protocol=NAME,
                    values={"settings": settings_of(method, settings)}, batch=BATCH, duration=steps * BATCH,
                    checkpoint_every=2 * BATCH, sample_every=2 * BATCH, evaluate_every=2 * BATCH, log_every=BATCH,
                    evaluate_samples=32, evaluation_samples=64, pairs_count=BATCH, pairs_steps=2, channels_last="off",
                )  # fmt: skip
                _check_run(run, teacher)
            except CheckFailure:
                raise
            except Exception as error:
                raise CheckFailure(
                    f"the job fails on a {kind} teacher: {type(error).__name__}: {error}",
                    "this is what `distillkit run` does for everyone",
                    "offer networks, samplers, conditioners and codecs of your own by their hooks; take shapes and "
                    "levels from the teacher",
                ) from error


def _check_run(run: Run, teacher: Teacher) -> None:
    """The run's folder holds what it should, and the student from it is one and the same by every way."""
    kind, student = teacher.spec.name, run.student
    samples = student(4, seed=0)
    if tuple(samples.shape) != (4, *teacher.codec.decoded_shape(teacher.spec.shape)):
        raise CheckFailure(
            f"the student of {kind} makes decoded samples of shape {tuple(samples.shape)}",
            "samples have the teacher's shape everywhere",
            "let the sampler return samples of the noise's shape",
        )
    if not list((run.folder / "samples").glob("*")):
        raise CheckFailure(f"{kind}: the run shows no samples", "people look at them", "let previews return samples")
    average = load_student(f"{run.folder}@latest")
    if not torch.equal(average(4, seed=0), samples):
        raise CheckFailure(
            f"{kind}: the newest checkpoint's student makes other samples than the finished student",
            "a checkpoint is a student",
            "keep everything that sampling depends on in the network's weights and in the sampler's fields",
        )
    record, again = run.record, evaluate(run, NAME, samples=64, device="cpu", quiet=True)
    figures = [r.figures[r.label].value for r in (record, again) if r is not None]
    if len(figures) < 2 or not all(map(math.isfinite, figures)) or not math.isclose(*figures, rel_tol=1e-4):
        raise CheckFailure(
            f"{kind}: the run measures {figures[:1]}, and `evaluate` {figures[1:]}",
            "a figure that depends on the way it is computed cannot be compared",
            "see that the student's samples depend on noise, condition and seed alone",
        )


def moves_to_the_teachers_distribution(method: type[Method], settings: Settings) -> None:
    """Where the truth is known, a short training brings the student much closer to it."""
    teacher = _known_exactly()
    config, _ = resolve(method, teacher_name=teacher.spec.name, options={"settings": dict(settings)})
    every = method().recipe(teacher, method.Config.model_validate(config.settings)).student_every
    duration = min(config.training.duration, POINTS * every)
    with tempfile.TemporaryDirectory() as folder, _own_cache(Path(folder) / "cache"):
        run = distil(
            method, teacher, output_dir=Path(folder) / "run", quiet=True, device="cpu",
            values={"settings": config.settings}, duration=duration, sample_every=duration, evaluate_every=duration,
            checkpoint_every=duration, pairs_count=min(1024, _pairs(config.sources)), channels_last="off",
        )  # fmt: skip
        figures = {row.name: row.record.figures[row.record.label].value for row in run.rows if row.record}
    before, after = (next(v for name, v in figures.items() if word in name) for word in ("untrained", "distilled"))
    if not after < 0.5 * before:
        raise CheckFailure(
            f"after {duration:,} points the divergence from the known distribution is {after:.3g}, before it was "
            f"{before:.3g}",
            "a method that cannot follow a few Gaussians in the plane will not follow images",
            f"see that the loss has the right sign and weight; a preset for {teacher.spec.name!r} may set its own pace",
        )


def _known_exactly() -> Teacher:
    """The teacher whose distribution is known; its network was fitted to the exact denoiser.

    The network itself is the teacher here, so that methods that look at its layers find some.
    """
    offers = [offer.value for offer in registry().named("teachers").values()]
    exact = next(offer() for offer in offers if isinstance(offer, TeacherOffer) and offer.card.exact)
    teacher = Teacher(exact.copy_denoiser(), exact.spec, exact.conditioner, exact.codec)
    teacher.images = exact.images
    return teacher


def _pairs(sources: dict[str, dict[str, Any]]) -> int:
    return int(sources.get("pairs", {}).get("count", 1024))


@contextlib.contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Nothing is left in the user's cache."""
    before = os.environ.get("DISTILLKIT_CACHE")
    os.environ["DISTILLKIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("DISTILLKIT_CACHE") if before is None else os.environ.update(DISTILLKIT_CACHE=before)
