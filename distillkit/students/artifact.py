"""The student, ready to be called, and written: weights in safetensors, everything needed to sample in JSON."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillkit.contracts.codec import Codec
from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.sampler import Sampler
from distillkit.contracts.student import StudentGenerator
from distillkit.errors import UsageError
from distillkit.files import is_occupied, write_json
from distillkit.models.build import merged
from distillkit.students.description import (
    StudentDescription,
    described_sampler,
    measured_nfe,
)
from distillkit.tensors import Stored
from distillkit.weight_files import SHARD_BYTES, write_weights

VALUES_AT_ONCE = 2**22
"""Numbers of decoded samples in one pass: five images of 512 x 512."""
STEM, DESCRIPTION = "model", "student.json"
ADAPTER = "adapter"
"""Stem of the file of a student that has the rest of its weights from its teacher."""


class Student:
    """A student to be called with a number of samples, or with noise and conditions.

    >>> student = load_student("runs/my-run")                       # doctest: +SKIP
    >>> images = student(64, seed=0)                                # doctest: +SKIP
    >>> threes = student(8, seed=0, classes=["3"])                  # doctest: +SKIP
    >>> cats = student(seed=0, prompts=["a cat", "two cats"])       # doctest: +SKIP

    Args:
        generator: the network and its sampler; frozen here.
        conditioner: the only maker of its conditions.
        codec: the only way from samples to what people look at.
        description: what it is and where it comes from.
        folder: where it was read from, if it was.
    """

    def __init__(
        self,
        generator: StudentGenerator,
        conditioner: Conditioner,
        codec: Codec,
        description: StudentDescription,
        folder: Path | None = None,
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.conditioner, self.codec = conditioner, codec
        self.description, self.folder = description, folder

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    @property
    def nfe(self) -> float:
        """Network evaluations of one sample, as they were counted."""
        return self.description.nfe

    def to(self, device: torch.device | str) -> Student:
        self.generator.to(device)
        self.conditioner, self.codec = self.conditioner.to(device), self.codec.to(device)
        return self

    def merged(self) -> Student:
        """The same student with weights of its own: what its adapters add is added to the teacher's weights. Itself
        where it has no adapters."""
        if self.description.adapter is None:
            return self
        generator = self.generator
        network = StudentGenerator(merged(generator.denoiser), generator.sampler, generator.shape)
        description = self.description.model_copy(update={"adapter": None, "weights_sha256": ""})
        return Student(network, self.conditioner, self.codec, description, self.folder)

    def with_guidance(self, guidance: float, say: Callable[[str], None] | None = None) -> Student:
        """The same weights sampled with another guidance weight, where that is an input of the network.

        Args:
            say: hears in one line that it was trained with no such weight; a log warning by default.

        Raises:
            UsageError: where it is learnt in.
        """
        generator = self.generator
        try:
            sampler = generator.sampler.with_guidance(guidance)
        except ValueError as error:
            raise UsageError(f"--guidance {guidance:g}: {error}") from error
        seen = sampler.trained_guidance
        if seen is not None and not seen[0] <= guidance <= seen[1]:
            outside = f"note: guidance {guidance:g} lies outside of {seen[0]:g} to {seen[1]:g}"
            (say or logging.getLogger("distillkit").warning)(f"{outside}, which the student was trained with")
        changed = StudentGenerator(generator.denoiser, sampler, generator.shape)
        update = {"sampler": described_sampler(sampler), "guidance": guidance}
        description = self.description.model_copy(update=update)
        return Student(changed, self.conditioner, self.codec, description, self.folder)

    def with_nfe(self, nfe: int) -> Student:
        """The same weights sampled with another number of evaluations, which are counted anew.

        Raises:
            UsageError: for a sampler whose number of evaluations is fixed, or one that it cannot have.
        """
        generator = self.generator
        try:
            sampler = generator.sampler.with_nfe(nfe, generator.denoiser)
        except ValueError as error:
            raise UsageError(f"{nfe} evaluations: {error}; this student takes {self.nfe:g}") from error
        return self.with_sampler(sampler)

    def with_sampler(self, sampler: Sampler) -> Student:
        """The same weights sampled in another way, whose evaluations are counted."""
        changed = StudentGenerator(self.generator.denoiser, sampler, self.generator.shape)
        counted = measured_nfe(changed, self.conditioner)
        description = self.description.model_copy(update={"sampler": described_sampler(sampler), "nfe": counted})
        return Student(changed, self.conditioner, self.codec, description, self.folder)

    @torch.inference_mode()
    def sample(self, noise: Tensor, condition: Condition, *, seed: int = 0, first: int = 0) -> Tensor:
        """Noise (B, ...) ~ N(0, I) and conditions -> samples (B, ...), not decoded.

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

    @torch.inference_mode()
    def __call__(
        self,
        count: int | None = None,
        *,
        seed: int = 0,
        keys: Tensor | Sequence[int] | None = None,
        classes: Sequence[str | int] | None = None,
        prompts: Sequence[str] | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Decoded samples (count, ...): images or video uint8, or points float32, on the CPU.

        Sample i depends on (seed, i) and its key alone, not on `count` or `batch`.

        Args:
            count: of samples; one for each prompt, key or class by default.
            keys: (count,) of the conditioner, such as class numbers; by default they go round all of them.
            classes: numbers or names of classes, as the conditioner reads them; they go round in turn.
            prompts: texts, for students of text; they go round in turn.
            batch: samples in one pass; by their size by default.

        Raises:
            UsageError: for conditions that the student does not have, or not one key for each sample.
        """
        given = [choice for choice in (keys, classes, prompts) if choice is not None]
        if len(given) > 1:
            raise UsageError("give one of keys, classes and prompts")
        if count is None:
            if not given:
                raise UsageError("say how many samples: student(64)")
            count = len(given[0])
        chosen = self._keys(count, keys, classes if prompts is None else prompts)
        shape, rng, made = self.generator.shape, SampleRNG(seed), []
        batch = batch or samples_at_once(self.codec.decoded_shape(shape))
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            condition = self.conditioner.encode(chosen[start : rows.stop].to(self.device))
            samples = self.sample(rng.normal("sample", 0, rows, shape), condition, seed=seed, first=start)
            made.append(self.codec.decode(samples).cpu())
        if made:
            return torch.cat(made)
        return torch.empty(0, *self.codec.decoded_shape(shape), dtype=self.codec.dtype)

    def _keys(self, count: int, keys: Tensor | Sequence[int] | None, classes: Sequence[str | int] | None) -> Tensor:
        conditioner = self.conditioner
        if (keys is not None or classes is not None) and not conditioner.count:
            raise UsageError("this student takes no conditions: give neither keys, classes nor prompts")
        if classes is not None:
            return conditioner.typed_in_turn([str(name) for name in classes], count)
        if keys is None:
            return conditioner.in_turn(range(count))
        wanted = torch.as_tensor(keys, dtype=torch.int64).cpu()
        outside = wanted[(wanted < 0) | (wanted >= conditioner.count)]
        if wanted.shape != (count,) or len(outside):
            given = f"{outside[0].item()} is outside" if len(outside) else f"{tuple(wanted.shape)} of them are given"
            raise UsageError(f"keys must be {count} numbers from 0 to {conditioner.count - 1}; {given}")
        return wanted

    def save(self, folder: str | Path) -> Path:
        """Write the student into a new or empty folder, from which `load_student` reads it; returns the folder.

        Raises:
            UsageError: when the folder is not empty.
        """
        place = Path(folder).expanduser()
        if is_occupied(place):
            raise UsageError(f"{place} is not an empty folder; choose another to save the student in")
        self.description = save_student(place, self.generator, self.description)
        return place


def samples_at_once(decoded: Sequence[int]) -> int:
    """Samples in one pass, by the shape of one that is decoded: 256 where they are small."""
    return max(1, min(256, VALUES_AT_ONCE // math.prod(decoded)))


def stem_of(description: StudentDescription) -> str:
    """What the files of a student's own weights are called."""
    return STEM if description.adapter is None else ADAPTER


def save_student(
    folder: Path,
    generator: StudentGenerator,
    description: StudentDescription,
    weights: Mapping[str, Tensor | Stored] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> StudentDescription:
    """Write weights and description into `folder`; returns the description with the weights' hash.

    Args:
        weights: of the denoiser, where the generator's own are not whole; read one at a time.
        shard_bytes: of the largest file; more is written as several with an index.
    """
    weights = generator.denoiser.state_dict() if weights is None else weights
    return write_student(folder, description, weights, shard_bytes=shard_bytes)


def write_student(
    folder: Path, description: StudentDescription, weights: Mapping[str, Tensor | Stored], *,
    shard_bytes: int = SHARD_BYTES,
) -> StudentDescription:  # fmt: skip
    """As `save_student`, of a student of which there are a description and weights alone, by the denoiser's names."""
    found = write_weights(folder, stem_of(description), weights, shard_bytes=shard_bytes)
    complete = description.model_copy(update={"weights_sha256": found})
    write_json(folder / DESCRIPTION, complete.model_dump(mode="json"))
    return complete
