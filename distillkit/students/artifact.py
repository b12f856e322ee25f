"""The student on disk: weights in safetensors, everything needed to sample in JSON, a card for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.sampler import OneStep, Sampler
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.diffusion.samplers import ConsistencySampler, EulerSampler, RenoisingSampler
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256, write_bytes, write_json
from distillkit.models.build import build_denoiser

WEIGHTS, DESCRIPTION = "model.safetensors", "student.json"
SAMPLERS: dict[str, type[Sampler]] = {
    "one-step": OneStep,
    "consistency": ConsistencySampler,
    "euler": EulerSampler,
    "renoising": RenoisingSampler,
}


class StudentDescription(BaseModel):
    """student.json: what a student is, how to sample from it and where it comes from."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    distillkit: str = Field(description="version that wrote it")
    method: str
    method_package: str = Field(description="distribution and version that the method came from")
    settings: dict[str, Any] = Field(description="the method's settings")
    teacher: TeacherSpec
    sampler: dict[str, Any] = Field(description="kind and arguments of the sampler")
    nfe: float = Field(description="network evaluations for one sample, measured")
    guidance: float = Field(1.0, description="guidance weight that the student has learnt in")
    images_seen: int
    weights_sha256: str = ""


class Student:
    """A loaded student: call it with a number of samples, or with noise and conditions.

    >>> generator = load_student("runs/my-run")            # doctest: +SKIP
    >>> pixels = generator(64, seed=0)                     # doctest: +SKIP
    """

    def __init__(self, generator: StudentGenerator, description: StudentDescription) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.description = description
        self._teacher = Teacher(generator.denoiser, generator.spec)

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def to(self, device: torch.device | str) -> Student:
        self.generator.to(device)
        return self

    @torch.inference_mode()
    def sample(self, noise: Tensor, condition: Condition, *, seed: int = 0, first: int = 0) -> Tensor:
        """Noise (B, C, H, W) ~ N(0, I) and conditions -> samples (B, C, H, W) in data units.

        Args:
            seed: of the fresh noise between evaluations, for students that take several.
            first: number of the first sample, on which that noise depends too.
        """
        rng = SampleRNG(seed)
        rows = range(first, first + len(noise))
        return self.generator(
            noise.to(self.device),
            condition.to(self.device),
            lambda k: rng.normal(f"renoise/{k}", 0, rows, noise.shape[1:]).to(self.device),
        )

    def __call__(self, count: int, *, seed: int = 0, labels: Tensor | None = None, batch: int = 256) -> Tensor:
        """Pixels (count, C, H, W) uint8. Sample i depends on (seed, i) alone, not on `count` or `batch`.

        Args:
            labels: (count,) class indices; by default they go round all classes in turn.

        Raises:
            UsageError: when labels are out of range or not one per sample.
        """
        spec = self.generator.spec
        if labels is not None and not spec.num_classes:
            raise UsageError("this student is unconditional: it takes no labels")
        if labels is None and spec.num_classes:
            labels = torch.arange(count) % spec.num_classes
        if labels is not None and (
            len(labels) != count or (count and not 0 <= int(labels.min()) <= int(labels.max()) < spec.num_classes)
        ):
            raise UsageError(f"labels must be {count} numbers from 0 to {spec.num_classes - 1}")
        rng, pixels = SampleRNG(seed), []
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            condition = Condition() if labels is None else Condition(labels=labels[start : rows.stop])
            noise = rng.normal("sample", 0, rows, spec.shape)
            pixels.append(self._teacher.decode(self.sample(noise, condition, seed=seed, first=start)).cpu())
        return torch.cat(pixels) if pixels else torch.empty(0, *spec.shape, dtype=torch.uint8)


def save_student(folder: Path, generator: StudentGenerator, description: StudentDescription) -> StudentDescription:
    """Write weights and description into `folder`; returns the description with the weights' hash."""
    state = {name: value.detach().cpu().contiguous() for name, value in generator.denoiser.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    complete = description.model_copy(update={"weights_sha256": sha256(folder / WEIGHTS)})
    write_json(folder / DESCRIPTION, complete.model_dump(mode="json"))
    return complete


def load_student(path: str | Path) -> Student:
    """Load a student from its folder, or from the folder of the run that made it. Nothing is unpickled.

    Raises:
        UsageError: when there is no student.
        DistillkitError: when its files are damaged or do not fit together.
    """
    folder = Path(path).expanduser()
    if not (folder / DESCRIPTION).is_file() and (folder / "student" / DESCRIPTION).is_file():
        folder = folder / "student"
    if not (folder / DESCRIPTION).is_file():
        hint = (
            f" The run is not finished: `distillkit run --resume {path}`." if (folder / "checkpoints").is_dir() else ""
        )
        raise UsageError(f"no student in {path}: {DESCRIPTION} is not there.{hint}")
    try:
        description = StudentDescription.model_validate(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")))
        if sha256(folder / WEIGHTS) != description.weights_sha256:
            raise DistillkitError(f"{folder / WEIGHTS} does not match the sha256 recorded in {DESCRIPTION}")
        state = load_file(folder / WEIGHTS)
        sampler = SAMPLERS[description.sampler["kind"]].model_validate(description.sampler)
    except (ValidationError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise DistillkitError(f"cannot read the student in {folder}: {str(error).splitlines()[0]}") from error
    denoiser = build_denoiser(description.teacher.network)
    denoiser.load_state_dict(state)
    return Student(StudentGenerator(denoiser, sampler, description.teacher), description)
