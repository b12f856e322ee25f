"""Latents that the data bring: checked against the teacher's autoencoder, and served in the order of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit.contracts.codec import Codec
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Images
from distillkit.contracts.teacher import Teacher
from distillkit.data.classes import numbers_of
from distillkit.data.config import DataConfig
from distillkit.data.given_text import Embeddings
from distillkit.data.labels import shown
from distillkit.data.latent_samples import latents_of
from distillkit.data.latents import has_latents
from distillkit.data.stream_files import StreamedFiles
from distillkit.errors import DistillkitError, UsageError

LATENTS = ("latent", "latents", "moments", "vae", "mean", "x", "")
"""Names of arrays that are latents without being said to be; of a member such as 0001.npy the name is empty."""
LOOKED_AT = 32
SCALED = ("scaled", "latents_scaled")
"""What data record of themselves: "true" where latents are scaled already."""
YES, NO = ("true", "yes", "1"), ("false", "no", "0")
PLAUSIBLE = (0.25, 4.0)
"""Standard deviations of scaled latents, which are made to be about 1."""


@dataclass(frozen=True)
class LatentFormat:
    """How the data hold latents.

    Args:
        name: of the arrays.
        moments: whether they are means and log-variances, twice the channels, as an autoencoder's encoder gives.
        scaled: whether they are what the denoiser sees, (z - shift) * scaling.
        summary: one line for people.
    """

    name: str
    moments: bool
    scaled: bool
    summary: str


def read_format(files: StreamedFiles, config: DataConfig, teacher: Teacher) -> LatentFormat:
    """How these data hold latents, by what is asked, what they record, and their first samples.

    Raises:
        UsageError: when they are not the teacher's, or nothing says whether they are scaled.
        DistillkitError: when they cannot be read.
    """
    codec, name = teacher.codec, teacher.spec.name
    _refuse_image_options(config, files)
    if not has_latents(codec):
        raise UsageError(
            f"{files.pattern} holds arrays and no images, and the teacher {name} makes {codec.content} without an "
            "autoencoder: give images"
        )
    arrays, facts = files.sample(0).arrays()
    named = _latent_name(arrays, config.latent_column, files)
    first = _plain(arrays[named])
    shape, want = tuple(first.shape), tuple(teacher.spec.shape)
    moments = shape == (2 * want[0], *want[1:])
    if shape != want and not moments:
        raise UsageError(
            f"the latents in {files.pattern} ({shown(named) or 'unnamed'}) are {shape} and those of the teacher {name} "
            f"are {want}, or {(2 * want[0], *want[1:])} with log-variances: they are of another autoencoder or another "
            "size of images"
        )
    scaled, said = _scaled(config, {**files.facts, **facts}, moments, files, named)
    kept = "means and log-variances, from which samples are drawn" if moments else "samples, frozen as they are"
    how = f"scaled already ({said})" if scaled else f"not scaled ({said}); they are scaled as {name}'s autoencoder says"
    found = LatentFormat(named, moments, scaled, "")
    spread = _deviation(files, found, codec)
    doubt = ""
    if not PLAUSIBLE[0] <= spread <= PLAUSIBLE[1]:
        other = "no" if scaled else "yes"
        doubt = f" - which is far from 1: should it be --data-latents-scaled {other}?"
    sizes = " x ".join(map(str, shape))
    dtype = str(first.dtype).removeprefix("torch.")
    return LatentFormat(
        named, moments, scaled,
        f"latents {sizes} {dtype} ({shown(named) or 'one array each'}): {kept}; {how}; standard deviation "
        f"{spread:.2f}{doubt}",
    )  # fmt: skip


def _refuse_image_options(config: DataConfig, files: StreamedFiles) -> None:
    plain = DataConfig()
    for name in ("resolution", "flip", "background", "grey"):
        if getattr(config, name) != getattr(plain, name):
            raise UsageError(
                f"--data-{name} is for images, before the autoencoder, and {files.pattern} holds latents: leave it out "
                "or encode the prepared images"
            )


def _latent_name(arrays: Mapping[str, Tensor], asked: str | None, files: StreamedFiles) -> str:
    held = ", ".join(f"{shown(name, 40) or 'unnamed'} {tuple(value.shape)}" for name, value in arrays.items()) or "none"
    if asked is not None:
        if asked.lower() not in arrays:
            raise UsageError(
                f"--data-latent-column {shown(asked)}: {files.where(0)} has no such array (arrays: {held})"
            )
        return asked.lower()
    found = [name for name in LATENTS if name in arrays] or ([*arrays] if len(arrays) == 1 else [])
    if not found:
        raise UsageError(
            f"{files.where(0)} does not say which array is the latent ({held}): name it by --data-latent-column"
        )
    return found[0]


def _scaled(
    config: DataConfig, facts: Mapping[str, str], moments: bool, files: StreamedFiles, name: str
) -> tuple[bool, str]:
    """Whether latents are scaled, and who says so."""
    recorded = next((facts[fact].lower() for fact in SCALED if fact in facts), "")
    known = True if recorded in YES else False if recorded in NO else None
    asked = {"yes": True, "no": False}.get(config.latents_scaled)
    if moments and (asked or known):
        raise UsageError(
            f"{files.pattern}: means and log-variances are not scaled, as an autoencoder's encoder gives them: "
            "--data-latents-scaled no, or store scaled samples"
        )
    if asked is not None and known is not None and asked != known:
        raise UsageError(
            f"--data-latents-scaled {config.latents_scaled}: {files.pattern} records that its latents are "
            f"{'scaled' if known else 'not scaled'}; leave the option out, or correct the data"
        )
    if asked is not None:
        return asked, "--data-latents-scaled"
    if known is not None:
        return known, "as the data record"
    if moments:
        return False, "as log-variances are there"
    spread = float(_plain(files.sample(0).arrays()[0][name]).float().std())
    raise UsageError(
        f"nothing says whether the latents in {files.pattern} are scaled: --data-latents-scaled yes if they are what "
        "the denoiser sees, no if they are what the autoencoder gives; the first has the standard deviation "
        f"{spread:.2f}, and scaled ones are about 1. "
        'Data may record it: the metadata {"scaled": "true"} of safetensors or parquet files'
    )


def _deviation(files: StreamedFiles, format: LatentFormat, codec: Codec) -> float:
    """The standard deviation of the first latents, as the denoiser sees them."""
    reader = LatentReader(files, format, codec)
    means = [reader(number)[0] for number in range(min(LOOKED_AT, len(files)))]
    return float(torch.stack(means).float().std())


def _plain(value: Tensor) -> Tensor:
    """Without a leading batch of one."""
    return value[0] if value.ndim > 1 and value.shape[0] == 1 and value.ndim == 4 else value


class LatentReader:
    """Mean and deviation of the latent of a sample, as the denoiser sees them."""

    def __init__(self, files: StreamedFiles, format: LatentFormat, codec: Codec) -> None:
        self.files, self.format, self.codec = files, format, codec
        self._shape: torch.Size | None = None

    def __call__(self, number: int) -> tuple[Tensor, Tensor | None]:
        """(C, h, w) of each, float32; no deviation where the data hold samples.

        Raises:
            DistillkitError: for one that is missing, not finite, or of another shape than the first.
        """
        where = self.files.where(number)
        arrays = self.files.sample(number).arrays()[0]
        if self.format.name not in arrays:
            raise DistillkitError(f"{where} has no array {shown(self.format.name) or 'that is its latent'}")
        value = _plain(arrays[self.format.name])
        self._shape = self._shape or value.shape
        if value.shape != self._shape or not value.is_floating_point():
            raise DistillkitError(
                f"the latent of {where} is {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}, and others "
                f"are {tuple(self._shape)} in floating point"
            )
        value = value.float()
        if not value.isfinite().all():
            raise DistillkitError(f"the latent of {where} is not finite; encode it again, in fp32 or bf16")
        mean, deviation = value, None
        if self.format.moments:
            mean, variance = value.chunk(2)
            # As diffusers' DiagonalGaussianDistribution bounds it.
            deviation = (0.5 * variance.clamp(-30, 20)).exp()
        if self.format.scaled:
            return mean, deviation
        scaled, spread = self.codec.scaled(mean[None], None if deviation is None else deviation[None])
        return scaled[0], None if spread is None else spread[0]


class GivenLatents:
    """Batches of latents that the data bring, in the order of a stream.

    Args:
        batch: samples of a step, of all processes.
        processes: that share the data.
        say: hears what is tried again.
    """

    def __init__(
        self, files: StreamedFiles, format: LatentFormat, teacher: Teacher, device: torch.device, batch: int, *,
        processes: int = 1, embeddings: Embeddings | None = None, say: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        self.files, self.device, self.say = files, device, say
        self.conditioner, self.embeddings = teacher.conditioner, embeddings
        self.order = files.arrange(batch, processes)
        self._read = LatentReader(files, format, teacher.codec)
        self._keys, note = numbers_of(files, self.conditioner)
        parts = [f"{len(files):,} latents from {files.pattern}", format.summary, *files.notes]
        parts += [embeddings.summary] if embeddings else [note] if note else []
        parts += [f"left out: {', '.join(files.left_out)}"] if files.left_out else []
        self.summary = "; ".join(parts)

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        """Latents (B, ...) on the device and their conditions; those of the next steps are fetched meanwhile."""
        chosen = self.order.numbers(rng, step, indices).tolist()
        self.files.ahead(chosen)
        self.files.ahead(self.order.numbers(rng, step + 1, indices).tolist())
        read = [self._read(number) for number in chosen]
        mean = torch.stack([mean for mean, _ in read]).to(self.device, non_blocking=True)
        there = [deviation for _, deviation in read if deviation is not None]
        deviation = torch.stack(there).to(self.device, non_blocking=True) if there else None
        for line in self.files.said():
            self.say(line)
        sample = latents_of(mean, deviation, rng, step, indices)
        if self.embeddings:
            return Images(sample, self.embeddings(chosen).to(self.device))
        keys = self._keys[torch.tensor(chosen)].to(self.device, non_blocking=True)
        return Images(sample, self.conditioner.encode(keys).to(self.device))
