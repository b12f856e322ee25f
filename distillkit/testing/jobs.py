"""The real job from end to end, on teachers of every kind."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch

from distillkit.contracts.method import Method
from distillkit.contracts.teacher import Teacher
from distillkit.jobs.api import distil, evaluate
from distillkit.jobs.run import Run
from distillkit.students.load import load_student
from distillkit.testing.failure import CheckFailure
from distillkit.testing.protocol import NAME
from distillkit.testing.setup import BATCH, Settings, recipe_of, settings_of
from distillkit.testing.teachers import TEACHERS
from distillkit.testing.truth import own_cache


def runs_end_to_end(method: type[Method], settings: Settings) -> None:
    """The real job on teachers of every kind: previews, checkpoints, a student that is saved, loaded, sampled and
    measured, with one figure by every way.

    With other settings than the defaults, on the class-conditional teacher alone.
    """
    for make in [*TEACHERS.values()][: 1 if settings else None]:
        runs_on(method, make(), settings)


def runs_on(method: type[Method], teacher: Teacher, settings: Settings) -> None:
    """As `runs_end_to_end`, on one teacher."""
    with tempfile.TemporaryDirectory() as folder, own_cache(Path(folder) / "cache"):
        half = 2 * BATCH * recipe_of(method, teacher, settings).student_every
        try:
            run = distil(
                method, teacher, output_dir=Path(folder) / "run", quiet=True, device="cpu", protocol=NAME,
                values={"settings": settings_of(method, settings)}, batch=BATCH, duration=2 * half,
                checkpoint_every=half, sample_every=half, evaluate_every=half, log_every=half,
                evaluate_samples=32, evaluation_samples=64, pairs_count=BATCH, pairs_steps=2, channels_last="off",
            )  # fmt: skip
            _check_run(run, teacher)
        except CheckFailure:
            raise
        except Exception as error:
            raise CheckFailure(
                f"the job fails on a {teacher.spec.name} teacher: {type(error).__name__}: {error}",
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
