"""The student on disk: weights in safetensors, everything needed to sample in JSON; and loaded, ready to be called."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from distillkit.contracts.codec import Codec
from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.student import StudentGenerator
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256, write_bytes, write_json
from distillkit.models.build import build_denoiser, check_kinds, described_weights
from distillkit.models.diffusers.folder import COMPONENTS, network_prefix
from distillkit.models.diffusers.parts import beside, with_parts
from distillkit.models.diffusers.weights import read_weights
from distillkit.models.store.folder import check_fit
from distillkit.reading import read_json
from distillkit.registry import registry
from distillkit.students.checkpoints import PREFIX, STATE, Weights, from_run, read_checkpoint, split_selector
from distillkit.students.description import (
    StudentDescription,
    described_sampler,
    difference,
    measured_nfe,
    read_description,
)
from distillkit.tensors import read_tensors

VALUES_AT_ONCE = 2**22
"""Numbers of decoded samples in one pass: five images of 512 x 512."""
WEIGHTS, DESCRIPTION = "model.safetensors", "student.json"


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

    def with_guidance(self, guidance: float) -> Student:
        """The same weights sampled with another guidance weight, where that is an input of the network.

        Raises:
            UsageError: where it is learnt in.
        """
        generator = self.generator
        try:
            sampler = generator.sampler.with_guidance(guidance)
        except ValueError as error:
            raise UsageError(f"--guidance {guidance:g}: {error}") from error
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
        changed = StudentGenerator(generator.denoiser, sampler, generator.shape)
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
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UsageError(f"{place} is not an empty folder; choose another to save the student in")
        self.description = save_student(place, self.generator, self.description)
        return place


def samples_at_once(decoded: Sequence[int]) -> int:
    """Samples in one pass, by the shape of one that is decoded: 256 where they are small."""
    return max(1, min(256, VALUES_AT_ONCE // math.prod(decoded)))


def save_student(folder: Path, generator: StudentGenerator, description: StudentDescription) -> StudentDescription:
    """Write weights and description into `folder`; returns the description with the weights' hash."""
    state = {name: value.detach().cpu().contiguous() for name, value in generator.denoiser.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    complete = description.model_copy(update={"weights_sha256": sha256(folder / WEIGHTS)})
    write_json(folder / DESCRIPTION, complete.model_dump(mode="json"))
    return complete


def load_student(path: str | Path, *, say: Callable[[str], None] | None = None) -> Student:
    """Load a student: from its folder, a run's, or a checkpoint's. Nothing is unpickled.

    `runs/x` is the finished student, or the newest checkpoint's moving average while the run is not finished.
    `runs/x@best`, `@latest` and `@12000` (a step) are the moving averages of those checkpoints; `@average` and
    `@student` are the newest checkpoint's moving average and its raw weights.

    Args:
        say: hears in one line what was taken in place of a finished student; a log warning by default.

    Raises:
        UsageError: when there is no student, or a package that it needs is not installed; names it.
        DistillkitError: when its files are damaged or do not fit together.
    """
    return built(found_weights(path, say or logging.getLogger("distillkit").warning))


def built(weights: Weights) -> Student:
    """A student from its weights and description: network, sampler, conditioner and codec by what is installed.

    Raises:
        UsageError: when a package that offers one of them is not installed; says which to install.
        DistillkitError: when they do not fit together, or weights are not finite.
    """
    known, description = registry(), weights.description
    try:
        sampler = known.build("samplers", description.sampler)
        conditioner = known.build("conditioners", description.conditioner)
        codec = known.build("codecs", description.codec)
        check_kinds(description.network, description.shape, conditioner, codec)
        expected = described_weights(description.network)
        if expected is not None:
            check_fit(expected, weights.state, weights.origin)
        denoiser = build_denoiser(description.network)
    except DistillkitError as error:
        raise type(error)(f"cannot load the student in {weights.folder}: {error}") from error
    if expected is None:
        check_fit(denoiser.state_dict(), weights.state, weights.origin)
    denoiser.load_state_dict(weights.state)
    generator = StudentGenerator(denoiser, sampler, description.shape)
    return Student(generator, conditioner, codec, description, weights.folder)


def found_weights(path: str | Path, say: Callable[[str], None]) -> Weights:
    """The weights that `load_student` loads, with what is known of them.

    Raises:
        UsageError, DistillkitError: as `load_student`.
    """
    folder, selector = split_selector(path)
    if (folder / DESCRIPTION).is_file():
        if selector:
            raise UsageError(f"{folder} is a student and has no checkpoints; leave @{selector} out or name the run")
        return _saved(folder)
    if (folder / STATE).is_file():
        if selector not in ("", "average", "student"):
            raise UsageError(f"{folder} is a checkpoint; @average and @student are what it has")
        return read_checkpoint(folder, selector or "average")
    if selector:
        if not folder.is_dir():
            raise UsageError(f"no student in {path}: the folder {folder} does not exist")
        return from_run(folder, selector, say)
    if (folder / "student" / DESCRIPTION).is_file():
        return _saved(folder / "student")
    if not (folder / "checkpoints").is_dir():
        what = "it is not there" if not folder.exists() else f"neither {DESCRIPTION} nor checkpoints are there"
        raise UsageError(f"no student in {path}: {what}; name the folder of a run, a student or a checkpoint")
    weights = from_run(folder, "latest", say)
    say(f"{folder} is not finished: taking {weights.origin}")
    return weights


def _saved(folder: Path) -> Weights:
    """The student in a folder: its weights in their own file, or in the network's folder of a diffusers pipeline."""
    description = read_description(read_json(folder / DESCRIPTION), str(folder / DESCRIPTION))
    conditioner, codec = (with_parts(part, beside(folder)) for part in (description.conditioner, description.codec))
    description = description.model_copy(update={"conditioner": conditioner, "codec": codec})
    path = folder / WEIGHTS
    network = next((name for name in COMPONENTS if (folder / name / "config.json").is_file()), None)
    if path.is_file():
        tensors, found = read_tensors(path), sha256(path)
    elif network:
        path = folder / network
        own, found, _ = read_weights(path)
        tensors = {f"{network_prefix(network)}{name}": value for name, value in own.items()}
    else:
        raise DistillkitError(
            f"{folder} has a {DESCRIPTION} and no {WEIGHTS}: it was exported for another library (see its README.md), "
            "or its weights were removed"
        )
    if found == description.weights_sha256:
        return Weights(tensors, description, folder, str(path))
    raise DistillkitError(f"{path} does not match the sha256 recorded in {DESCRIPTION}: {found}")


def initial_weights(path: str | Path, like: Denoiser) -> tuple[dict[str, Tensor], str]:
    """The weights that another training's student starts from, by the names of its denoiser, and where they come from.

    Args:
        path: whatever `load_student` takes, or a safetensors file of a denoiser's or a student's weights.
        like: the network that they are for.

    Raises:
        UsageError: when there is nothing of the kind, or the network is another.
        DistillkitError: when it is damaged or not finite.
    """
    file = Path(path).expanduser()
    if file.is_file():
        if file.suffix != ".safetensors":
            raise UsageError(
                f"{file} is not a .safetensors file; a student starts from one, or from a student's folder"
            )
        state = read_tensors(file)
        if state and all(name.startswith(PREFIX) for name in state):
            state = {name.removeprefix(PREFIX): value for name, value in state.items()}
        origin = str(file)
    else:
        weights = found_weights(path, logging.getLogger("distillkit").warning)
        state, origin = weights.state, weights.origin
    if strange := difference(like, state):
        raise UsageError(f"a student cannot start from {origin}, which is of another network: {strange} there")
    check_fit(like.state_dict(), state, origin)
    return state, origin
