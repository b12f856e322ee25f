"""Pipelines of diffusers as they are, or with a LoRA, other weights or another scheduler: read, never executed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distillkit.dtypes import DTYPES
from distillkit.errors import UsageError
from distillkit.evaluation.pipeline_scheduler import evaluated_steps, other_scheduler, own_scheduler
from distillkit.evaluation.replacements import LORA_FILE, fuse, lora_file, network_with, refused, weights_place
from distillkit.files import canonical_json, sha256
from distillkit.models.diffusers.folder import COMPONENTS, folder_name
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.published import PublishedConfig
from distillkit.models.diffusers.weights import chosen, weights_sha256
from distillkit.reading import Missing, read_mapping

LEFT_OUT = "safety_checker"
"""It would put black images in the place of some."""


@dataclass(frozen=True)
class Assembly:
    """A pipeline's folder with what takes the place of its own parts, found and hashed, not loaded.

    Args:
        folder: of the pipeline.
        index: its model_index.json.
        component: its network's name, "unet" or "transformer".
        asked: what takes the place of its own parts.
        lora, weights: where these lie; None where none are asked for.
        files: sha256 of all files that its samples depend on.
        variant: of its network's weights; "" for the plain ones.
    """

    folder: Path
    index: Mapping[str, Any]
    component: str
    asked: PublishedConfig
    lora: Path | None
    weights: Path | None
    files: Mapping[str, str]
    variant: str = ""

    @property
    def title(self) -> str:
        """What it is put together from."""
        parts = [self._part(place) for place in (self.weights, self.lora) if place]
        return "".join(f" + {part}" for part in parts)

    def _part(self, place: Path) -> str:
        if place.is_dir():
            return folder_name(place.parent if place.name == self.component else place)
        return folder_name(place.parent) if place.name == LORA_FILE else place.stem

    @property
    def network_sha256(self) -> str:
        """The hash of all files that its network's weights come from."""
        own = ("weights", "lora", f"{self.component}/")
        weights = canonical_json({file: h for file, h in self.files.items() if file.startswith(own)})
        return hashlib.sha256(weights.encode()).hexdigest()

    @cached_property
    def scheduler(self) -> Any:
        """The scheduler that it is sampled with.

        Raises:
            UsageError: for a class that diffusers does not have, or an option that it does not take.
        """
        entry: Any = self.index.get("scheduler")
        own = own_scheduler(self.folder, entry[1]) if is_component(entry) else None
        found = other_scheduler(self.asked.scheduler, own) if self.asked.scheduler else own
        if found is None:
            raise UsageError(f"{self.folder} has no scheduler of its own: name one by --scheduler")
        return found

    def steps(self, count: int) -> list[float] | None:
        """The training steps that the network is evaluated at; None where the pipeline tells the scheduler more.

        Raises:
            UsageError: for timesteps, an eta, or a number of steps that the scheduler does not take.
        """
        return evaluated_steps(self.scheduler, count, self.asked)

    def load(self) -> Any:
        """The pipeline by diffusers' own loader, from safetensors alone, without a safety checker; a LoRA is fused into
        its weights.

        Raises:
            UsageError: for weights or a LoRA of another network.
            DistillkitError: when a file is damaged, or diffusers refuses it; says why.
        """
        from diffusers import DiffusionPipeline

        left_out: dict[str, Any] = {
            name: None for name, entry in self.index.items()
            if is_component(entry) and (name == LEFT_OUT or not (self.folder / name).is_dir())
        }  # fmt: skip
        given: dict[str, Any] = dict(left_out)
        if self.weights:
            given[self.component] = network_with(
                self.folder, self.component, self.index[self.component][1], self.weights
            )
        loader: Any = DiffusionPipeline
        with refused(f"diffusers cannot load {self.folder} from safetensors"):
            pipeline = loader.from_pretrained(
                str(self.folder), use_safetensors=True, local_files_only=True, variant=self.variant or None, **given
            )
        pipeline.set_progress_bar_config(disable=True)
        if self.asked.scheduler:
            pipeline.scheduler = other_scheduler(self.asked.scheduler, pipeline.scheduler)
        if self.lora:
            fuse(pipeline, self.lora, self.asked.lora_scale, self.component)
        return pipeline


def assembled(folder: Path, asked: PublishedConfig, precision: str = "fp32") -> Assembly:
    """A pipeline's folder with what takes the place of its own parts; what lies on the hub is downloaded.

    Raises:
        UsageError: for a pipeline that brings code, or parts that diffusers and transformers do not have, or files that
            are not there.
        DistillkitError: when its files are damaged or cannot be had.
    """
    index = checked_index(folder)
    component = next((name for name in COMPONENTS if (folder / name).is_dir()), "")
    if not component:
        raise UsageError(f"{folder} holds a pipeline without a network ({' or '.join(COMPONENTS)})")
    dtype = DTYPES[precision]
    lora = lora_file(asked.lora) if asked.lora else None
    weights = weights_place(asked.weights, component, dtype) if asked.weights else None
    taken = {component} if weights else set()
    present = [name for name in index if is_component(index[name]) and (folder / name).is_dir() and name not in taken]
    files = dict(PipelineParts(source=str(folder)).hashed(*present, dtype=dtype).sha256)
    if weights:
        config = weights / "config.json" if weights.is_dir() else folder / component / "config.json"
        files |= {"weights": weights_sha256(weights) if weights.is_dir() else sha256(weights)}
        files |= {f"{component}/config.json": sha256(config)}
    if lora:
        files["lora"] = sha256(lora)
    found = chosen([path.name for path in (folder / component).iterdir()], dtype)
    return Assembly(folder, index, component, asked, lora, weights, files, found.variant if found else "")


def checked_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline in which nothing but diffusers and transformers is named.

    Raises:
        UsageError: where code of others would be run; names it.
    """
    import diffusers

    try:
        index = read_mapping(folder / "model_index.json")
    except Missing as error:
        raise UsageError(f"{folder} is no pipeline of diffusers: model_index.json is missing") from error
    kind = index.get("_class_name")
    if not isinstance(kind, str) or not hasattr(diffusers, kind):
        raise UsageError(f"{folder} is a pipeline of its own code ({kind}), which is not run")
    for name, entry in index.items():
        used = is_component(entry) and name != LEFT_OUT and (folder / name).is_dir()
        if used and entry[0] not in ("diffusers", "transformers"):
            raise UsageError(f"{folder}: its {name} is code of its own ({'.'.join(entry)}), which is not run")
    return index


def is_component(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
