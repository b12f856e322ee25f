"""Scores of a run's three generators under one protocol, and the teacher's scores that need not be measured twice."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import torch
from torch import Tensor

from distillkit import assets
from distillkit.contracts.condition import Condition
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.data.embedded import makes_digits
from distillkit.diffusion.schedules import karras_sigmas
from distillkit.diffusion.solvers import heun
from distillkit.errors import DistillkitError
from distillkit.embedded.mixture.protocol import DensityRuler, density_ruler
from distillkit.embedded.digits.protocol import digits_features, digits_protocol, digits_reference
from distillkit.evaluation.sampling import Generate, balanced_labels, seeded_noise
from distillkit.evaluation.score import Ruler, Score
from distillkit.files import cache_folder, canonical_json, write_json
from distillkit.progress import Reporter
from distillkit.models.edm.catalog import MIXTURE

SELECTION_SEED = 1_000_000
"""Scores during training use seeds from here on; the closing score uses seeds from 0, which no choice has seen."""

TIMED = 256
"""Samples whose generation is timed where a score is not measured anew."""


def ruler_for(spec: TeacherSpec, count: int, *, selecting: bool = False) -> Ruler | DensityRuler | None:
    """The embedded protocol for teachers of 8x8 digits or of points; None for others, which nothing here judges."""
    if spec.shape == MIXTURE.spec.shape:
        return density_ruler()
    if not makes_digits(spec):
        return None
    protocol = digits_protocol(count, SELECTION_SEED if selecting else 0)
    return Ruler(protocol, digits_features(), digits_reference())


def student_pixels(student: StudentGenerator, teacher: Teacher) -> Generate:
    """The student as a generator of pixels."""

    def generate(noise: Tensor, condition: Condition, seeds: list[int]) -> Tensor:
        def renoise(k: int) -> Tensor:
            return SampleRNG(0).normal(f"renoise/{k}", 0, seeds, noise.shape[1:]).to(noise.device)

        return _decoded(teacher, student(noise, condition, renoise))

    return generate


def teacher_pixels(teacher: Teacher, steps: int, guidance: float = 1.0) -> Generate:
    """The teacher's Heun sampler as a generator of pixels; 2 `steps` - 1 evaluations, twice that with guidance."""
    spec = teacher.spec
    sigmas = karras_sigmas(steps, sigma_min=spec.sigma_min, sigma_max=spec.sigma_max, rho=spec.rho)

    def generate(noise: Tensor, condition: Condition, seeds: list[int]) -> Tensor:
        return _decoded(teacher, heun(lambda x, s: teacher(x, s, condition, guidance), noise, sigmas))

    return generate


def _decoded(teacher: Teacher, samples: Tensor) -> Tensor:
    """Pixels; NaN would become black without a word."""
    if not torch.isfinite(samples).all():
        raise DistillkitError(f"the generator made from {teacher.spec.name} gives NaN or infinity instead of samples")
    return teacher.decode(samples)


def teacher_score(
    teacher: Teacher,
    ruler: Ruler | DensityRuler,
    device: torch.device,
    reporter: Reporter,
    *,
    batch: int = 500,
    fresh: bool = False,
) -> Score:
    """The teacher's score with its own number of steps; kept under the hash of all that it depends on.

    The figure is measured once for a set of weights and a protocol (the embedded teacher's is shipped); the speed
    is measured here and now.
    """
    steps = teacher.spec.solver_steps
    generate = teacher_pixels(teacher, steps)
    name = score_key(teacher, ruler)
    kept = None if fresh else _kept(name)
    if kept:
        speed = images_per_second(generate, teacher.spec, device)
        return Score(kept["terms"], kept["nfe"], speed, ruler.protocol.id, ruler.protocol.label, kept["count"])
    count = ruler.protocol.samples.count
    with reporter.task(f"scoring the teacher ({steps} Heun steps)", count, "samples") as task:
        result = ruler.score(generate, teacher.denoiser, teacher.spec, device, batch=batch, advance=task.advance)
    kept = {"terms": dict(result.terms), "nfe": result.nfe, "count": result.count}
    write_json(cache_folder() / "scores" / f"{name}.json", kept)
    return result


def score_key(teacher: Teacher, ruler: Ruler | DensityRuler) -> str:
    """Hash of all that a teacher's score depends on."""
    identity = {
        "weights": teacher.spec.weights_sha256,
        "protocol": ruler.protocol.id,
        "solver": "heun",
        "steps": teacher.spec.solver_steps,
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def _kept(key: str) -> dict[str, Any] | None:
    try:
        shipped = json.loads((assets.FOLDER / assets.SCORES).read_text())
        kept = dict(shipped.get(key) or json.loads((cache_folder() / "scores" / f"{key}.json").read_text()))
        # What another version wrote otherwise is measured anew.
        return kept if kept.keys() >= {"terms", "nfe", "count"} else None
    except (OSError, ValueError):
        return None


@torch.inference_mode()
def images_per_second(generate: Generate, spec: TeacherSpec, device: torch.device, count: int = TIMED) -> float:
    """Generation speed, after a short warm-up."""
    seeds = list(range(count))
    noise, condition = seeded_noise(seeds, spec.shape).to(device), balanced_labels(range(count), spec.num_classes)
    condition = condition.to(device)
    few = slice(0, 8)
    generate(noise[few], condition.select(few), seeds[few])
    began = time.perf_counter()
    generate(noise, condition, seeds)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - began)
