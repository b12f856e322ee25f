"""Families: how the pipelines of one class of networks become teachers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from distillkit.contracts.codec import Codec, Pixels
from distillkit.contracts.conditioner import Conditioner, Unconditional
from distillkit.errors import UsageError
from distillkit.models.diffusers.options import PLAIN, PipelineConfig
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.scheduler import Grid, Noise, noise_of
from distillkit.models.diffusers.vae import AutoencoderKL, autoencoder_of
from distillkit.names import name_from
from distillkit.reading import Missing, read_mapping
from distillkit.text import short


@dataclass(frozen=True)
class Pipeline:
    """A folder of diffusers, read as far as its configurations go.

    Args:
        folder: of the pipeline, or of a network alone.
        network: the folder of its network, which may be the same.
        source: by which its parts are found again: the folder, or `hf:ORG/REPO@REVISION`.
        noise_from: path of the scheduler's configuration.
        asked: what is asked of it beside its files.
    """

    folder: Path
    network: Path
    source: str
    noise_from: Path
    asked: PipelineConfig = PLAIN

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """model_index.json; empty where there is none."""
        path = self.folder / "model_index.json"
        return read_mapping(path) if path.is_file() else {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The network's config.json."""
        return mapping_at(self.network / "config.json")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the network's class is built from."""
        return {key: value for key, value in self.config.items() if not key.startswith("_")}

    @cached_property
    def scheduler(self) -> Mapping[str, Any]:
        """The scheduler's configuration."""
        return mapping_at(self.noise_from)

    @cached_property
    def noise(self) -> Noise:
        """The noise schedule, and what the network predicts under it.

        Raises:
            UsageError: for a scheduler or an option that cannot be followed; names it.
        """
        return self.noise_on(Grid())

    def noise_on(self, grid: Grid) -> Noise:
        """The same, where the pipeline asks a flow's scheduler for its times in another way."""
        return noise_of(self.scheduler, str(self.noise_from), grid)

    @property
    def parts(self) -> PipelineParts:
        """The frozen parts beside the network."""
        return PipelineParts(source=self.source)

    def has(self, component: str) -> bool:
        """Whether the pipeline has that component."""
        entry = self.index.get(component)
        named = isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
        return named or (not self.index and (self.folder / component).is_dir())

    def class_of(self, component: str) -> str:
        """The class that model_index.json says a component is of; "" where it says none."""
        entry = self.index.get(component)
        return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else ""

    def require(self, *components: str) -> None:
        """Refuse a pipeline that lacks a component.

        Raises:
            UsageError: naming the first that is missing.
        """
        for component in components:
            if not self.has(component):
                raise UsageError(
                    f"{self.folder} has no {component}, which its {self.config.get('_class_name')} needs; it has "
                    f"{', '.join(sorted(name for name in self.index if self.has(name))) or 'no model_index.json'}"
                )
            if not (self.folder / component).is_dir():
                raise UsageError(f"{self.folder}/model_index.json names a {component}, and its folder is not there")

    def refuse(self, options: Mapping[str, Collection[Any]]) -> None:
        """Refuse arguments of the network that are not followed.

        Args:
            options: argument -> the values that are.

        Raises:
            UsageError: naming the first argument and its value.
        """
        for name, known in options.items():
            if (value := self.config.get(name)) not in known:
                raise UsageError(
                    f"{self.network / 'config.json'}: {name} {short(value)} is not supported; known: "
                    f"{', '.join(map(str, known))}"
                )

    def autoencoder(self, *, shifted: bool = False, spread: bool = False) -> AutoencoderKL:
        """The codec of the pipeline's AutoencoderKL.

        Args:
            shifted: the pipeline adds the VAE's `shift_factor`; those of Stable Diffusion 1 to XL, DiT and PixArt do
                not look at it.
            spread: it uses `latents_mean` and `latents_std`.

        Raises:
            UsageError: for an autoencoder of another class.
            DistillkitError: for a configuration that is damaged.
        """
        return autoencoder_of(self.parts, shifted=shifted, spread=spread)

    def sides(self, codec: AutoencoderKL, own: tuple[int, int], patch: int = 1) -> tuple[int, int]:
        """Height and width of latents: of the pictures that are asked for, or the pipeline's own.

        Args:
            own: height and width of latents where nothing is asked for.
            patch: places of a latent's side in one token.

        Raises:
            UsageError: for pictures that no latents have; says the nearest that some do.
        """
        if self.asked.sides is None:
            return own
        each = codec.factor * patch
        height, width = self.asked.sides
        if height % each or width % each:
            near = "x".join(str(max(1, round(side / each)) * each) for side in (width, height))
            raise UsageError(
                f"{self.asked.options[0]}: sides of this pipeline's pictures are multiples of {each}, such as {near}"
            )
        return height // codec.factor, width // codec.factor

    def of_latents(self, kind: str, noise: Noise) -> Mapping[str, Any]:
        """The description of a denoiser of latents, whose standard deviation is 1: kind, and arguments under this
        noise."""
        return {"kind": kind, "arguments": {**self.conditioned(noise), "sigma_data": 1.0}}

    def conditioned(self, noise: Noise | None = None) -> Mapping[str, Any]:
        """The arguments of a denoiser of this network, under this noise or the pipeline's."""
        noise = noise or self.noise
        return {
            "network": self.arguments,
            "schedule": noise.schedule.model_dump(mode="json"),
            "prediction": noise.prediction,
            "sigma_data": noise.sigma_data,
        }


@dataclass(frozen=True)
class Described:
    """What a pipeline is as a teacher, without weights.

    Args:
        shape: of a sample, without the batch.
        network: kind and arguments, from which `build_denoiser` makes it.
        prefix: before the names of the network's weights in the denoiser's.
        conditioner, codec: with their parts named by `Pipeline.parts`.
        solver, solver_steps: that it is sampled with by default.
    """

    shape: tuple[int, ...]
    network: Mapping[str, Any]
    prefix: str
    conditioner: Conditioner = field(default_factory=Unconditional)
    codec: Codec = field(default_factory=Pixels)
    solver: Literal["heun", "euler", "ddim"] = "heun"
    solver_steps: int = 40


Family = Callable[[Pipeline], Described]
"""What a pipeline around one class of networks is as a teacher; raises `UsageError` for what it does not follow.

A plugin offers its own by the hook `distillkit_families`, by the name of that class, and the network itself by
`distillkit_networks`.
"""


def class_names(pipeline: Pipeline, classes: int) -> tuple[str, ...]:
    """The names of so many classes in the pipeline's `id2label`, of several words for one the first that is no other
    class'; () where it does not name them all."""
    called = pipeline.index.get("id2label")
    texts = [str(called.get(str(n), "")) for n in range(classes)] if isinstance(called, Mapping) else []
    first = [text.partition(",")[0].strip() for text in texts]
    often = Counter(first)
    names = tuple(
        name_from(short if often[short] == 1 else text) if short else ""
        for short, text in zip(first, texts, strict=True)
    )
    return names if all(names) else ()


def sides(sample_size: object, pipeline: Pipeline) -> tuple[int, int]:
    """Height and width of latents, of a network's `sample_size`.

    Raises:
        UsageError: where the configuration does not say it.
    """
    if isinstance(sample_size, int):
        return sample_size, sample_size
    if isinstance(sample_size, list | tuple) and len(sample_size) == 2:
        return int(sample_size[0]), int(sample_size[1])
    raise UsageError(f"{pipeline.network / 'config.json'} does not say the sample_size")


def mapping_at(path: Path) -> dict[str, Any]:
    """A JSON file that must be there.

    Raises:
        UsageError: when it is missing.
        DistillkitError: when it is damaged.
    """
    try:
        return read_mapping(path)
    except Missing as error:
        raise UsageError(f"{path} is missing") from error
