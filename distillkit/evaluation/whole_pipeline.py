"""Pipelines of diffusers as they are, with their own scheduler, as what is measured: published few-step students."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.contracts.codec import Content
from distillkit.dtypes import DTYPES
from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.protocol import SampleSpec
from distillkit.evaluation.record import Subject
from distillkit.evaluation.sampling import Tally, require_content, seeded_noise
from distillkit.files import canonical_json
from distillkit.models.diffusers.folder import COMPONENTS, folder_name, source_of
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.weights import chosen
from distillkit.reading import Missing, read_mapping

LEFT_OUT = "safety_checker"
"""It would put black images in the place of some."""


@dataclass(frozen=True)
class WholePipeline:
    """A pipeline that is called as its users call it, on the protocol's noise and prompts.

    Args:
        subject: what the record says of it.
        folder: of the pipeline.
        steps, guidance: `num_inference_steps` and `guidance_scale` of the call.
        files: the sha256 of all files that its samples depend on.
        variant: of its network's weights; "" for the plain ones.
        size: height and width of its pictures; its own by default.
    """

    subject: Subject
    folder: Path
    steps: int
    guidance: float
    files: Mapping[str, str]
    variant: str = ""
    size: tuple[int, int] | None = None
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def content(self) -> Content:
        return "images"

    def samples_of(self, spec: SampleSpec) -> SampleSpec:
        labels = spec.labels if spec.labels != "none" else "index mod classes"
        return spec.model_copy(update={"labels": labels})

    def identity(self) -> Mapping[str, Any]:
        subject = self.subject
        return {
            "files": dict(self.files), "sampler": subject.sampler, "guidance": self.guidance,
            "precision": subject.precision,
        }  # fmt: skip

    @torch.inference_mode()
    def draw(self, measure: Measure, batches: Sequence[range], device: torch.device, tally: Tally) -> Iterator[Tensor]:
        pipeline, before = self._pipeline(device), tally.evaluations
        conditions = _Conditions.of(pipeline, measure, self.subject.name)
        with counted(_network(pipeline)) as evaluations:
            for batch in batches:
                began = time.perf_counter()
                decoded = self._images(pipeline, conditions, measure.protocol.samples, batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                # The first batch pays for one-time set-up; it counts only if there is no other.
                timed = batch != batches[0] or len(batches) == 1
                tally.add(len(batch), time.perf_counter() - began, timed=timed)
                tally.evaluations = before + evaluations()
                yield require_content(decoded.to(device), "images")

    def _images(self, pipeline: Any, conditions: _Conditions, spec: SampleSpec, batch: range) -> Tensor:
        """Images (B, C, H, W) uint8 at these indices."""
        known, shape = inspect.signature(pipeline.__call__).parameters, _latent_shape(pipeline, self.size)
        if spec.rng == "sobol":
            raise UsageError("pipelines are measured on random noise, and this protocol's is a Sobol sequence")
        seeds = [spec.first_seed + index for index in batch]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        call: dict[str, Any] = {"num_inference_steps": self.steps, "output_type": "np", **conditions.at(batch)}
        if "guidance_scale" in known:
            call["guidance_scale"] = self.guidance
        if "batch_size" in known:
            call["batch_size"] = len(batch)
        if self.size and not {"height", "width"} <= known.keys():
            raise UsageError(f"a {type(pipeline).__name__} makes pictures of one size: leave --resolution out")
        if self.size:
            call["height"], call["width"] = self.size
        if "use_resolution_binning" in known:
            call["use_resolution_binning"] = False
        if "latents" in known:
            noise = seeded_noise(seeds, shape)
            for generator in generators:  # what comes next is for the scheduler
                torch.randn(shape, generator=generator)
            packed = getattr(pipeline, "_pack_latents", None)
            noise = packed(noise, len(noise), *shape) if packed else noise
            call["latents"] = noise.to(pipeline.device, next(_network(pipeline).parameters()).dtype)
        with _drawing_from(pipeline.scheduler, generators):
            made = torch.from_numpy(pipeline(generator=generators, **call).images)
        if not torch.isfinite(made).all():
            raise DistillkitError(f"{self.subject.name} gives NaN or infinity instead of images")
        # As `Pixels.decode`: rounded half up in float32.
        return (made.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 2)

    def _pipeline(self, device: torch.device) -> Any:
        if not self._loaded:
            dtype = DTYPES[self.subject.precision]
            self._loaded["pipeline"] = _read(self.folder, self.variant).to(device, dtype)
        return self._loaded["pipeline"]


def whole_pipeline(
    folder: Path, steps: int, guidance: float, *, precision: str = "fp32", name: str = "",
    size: tuple[int, int] | None = None,
) -> WholePipeline:  # fmt: skip
    """A pipeline's folder as what is measured.

    Args:
        size: height and width of its pictures; its own by default.

    Raises:
        UsageError: for a pipeline that brings code, or parts that diffusers and transformers do not have.
        DistillkitError: when its files are damaged.
    """
    index = checked_index(folder)
    component = next((name for name in COMPONENTS if (folder / name).is_dir()), "")
    if not component:
        raise UsageError(f"{folder} holds a pipeline without a network ({' or '.join(COMPONENTS)})")
    present = [name for name in index if _is_component(index[name]) and (folder / name).is_dir()]
    dtype = DTYPES[precision]
    parts = PipelineParts(source=str(folder)).hashed(*present, dtype=dtype)
    scheduler = str(index["scheduler"][1]) if _is_component(index.get("scheduler")) else "no scheduler"
    weights = canonical_json({file: h for file, h in parts.sha256.items() if file.startswith(f"{component}/")})
    title = f"{name or folder_name(folder)}{f' {size[1]}x{size[0]}' if size else ''}"
    resolution = {"resolution": [size[1], size[0]]} if size else {}
    subject = Subject(
        kind="pipeline", name=f"{title}, {steps} {scheduler} step{'' if steps == 1 else 's'}",
        weights_sha256=hashlib.sha256(weights.encode()).hexdigest(), teacher=source_of(folder),
        sampler={"kind": f"diffusers:{scheduler}", "steps": steps, **resolution}, guidance=guidance,
        precision=precision,
    )  # fmt: skip
    found = chosen([path.name for path in (folder / component).iterdir()], dtype)
    return WholePipeline(subject, folder, steps, guidance, parts.sha256, found.variant if found else "", size)


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
        used = _is_component(entry) and name != LEFT_OUT and (folder / name).is_dir()
        if used and entry[0] not in ("diffusers", "transformers"):
            raise UsageError(f"{folder}: its {name} is code of its own ({'.'.join(entry)}), which is not run")
    return index


def _is_component(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)


def _read(folder: Path, variant: str) -> Any:
    """The pipeline by diffusers' own loader, from safetensors alone, without a safety checker.

    Args:
        variant: of its weights; "" for the plain ones.

    Raises:
        DistillkitError: when diffusers refuses it; says why.
    """
    from diffusers import DiffusionPipeline

    index = checked_index(folder)
    left_out = {
        name: None for name in index
        if _is_component(index[name]) and (name == LEFT_OUT or not (folder / name).is_dir())
    }  # fmt: skip
    loader: Any = DiffusionPipeline
    try:
        pipeline = loader.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, variant=variant or None, **left_out
        )
    except Exception as error:  # diffusers and transformers raise many kinds
        reason = str(error).strip().partition("\n")[0]
        raise DistillkitError(
            f"diffusers cannot load {folder} from safetensors ({type(error).__name__}: {reason})"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _network(pipeline: Any) -> nn.Module:
    network: nn.Module = next(n for name in COMPONENTS if (n := getattr(pipeline, name, None)) is not None)
    return network


def _latent_shape(pipeline: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(C, h, w) of the noise, for pictures of this height and width or the pipeline's own.

    Raises:
        UsageError: where the pipeline does not say it.
    """
    config: Any = _network(pipeline).config
    vae = getattr(pipeline, "vae", None)
    channels = config.in_channels if vae is None else vae.config.latent_channels
    if size:
        factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        if any(side % factor for side in size):
            raise UsageError(f"--resolution {size[1]}x{size[0]}: sides are multiples of {factor} for this pipeline")
        return channels, size[0] // factor, size[1] // factor
    side = getattr(config, "sample_size", None) or getattr(pipeline, "default_sample_size", None)
    if isinstance(side, int):
        return channels, side, side
    if isinstance(side, list | tuple) and len(side) == 2:
        return channels, int(side[0]), int(side[1])
    raise UsageError(f"a {type(pipeline).__name__} whose network does not say its sample_size cannot be measured")


@dataclass(frozen=True)
class _Conditions:
    """What a pipeline makes images of: prompts, classes in turn, or nothing."""

    prompts: Sequence[str] = ()
    classes: int = 0

    @classmethod
    def of(cls, pipeline: Any, measure: Measure, name: str) -> _Conditions:
        known = inspect.signature(pipeline.__call__).parameters
        if "prompt" in known:
            if not measure.prompts:
                raise UsageError(f"{name} makes pictures of text: --prompts FILE, or a protocol with prompts")
            return cls(prompts=measure.prompts)
        if measure.prompts:
            raise UsageError(f"{name} takes no prompts, and {measure.protocol.name} has some")
        return cls(classes=int(getattr(_network(pipeline).config, "num_embeds_ada_norm", 0) or 0))

    def at(self, batch: range) -> dict[str, Any]:
        """The arguments of a call for samples at these indices."""
        if self.prompts:
            return {"prompt": [self.prompts[index % len(self.prompts)] for index in batch]}
        return {"class_labels": [index % self.classes for index in batch]} if self.classes else {}


@contextmanager
def _drawing_from(scheduler: Any, generators: list[torch.Generator]) -> Iterator[None]:
    """The scheduler draws fresh noise from these, also where its pipeline leaves it to torch's own generator."""
    step = scheduler.step
    if "generator" not in inspect.signature(step).parameters:
        yield
        return

    @wraps(step)
    def drawing(*args: Any, **given: Any) -> Any:
        given.setdefault("generator", generators)
        return step(*args, **given)

    scheduler.step = drawing
    try:
        yield
    finally:
        del scheduler.step


@contextmanager
def counted(network: nn.Module) -> Iterator[Callable[[], int]]:
    """Count the samples that pass through a network of diffusers; a guided evaluation passes twice as many."""
    seen = 0

    def count(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        nonlocal seen
        first = args[0] if args else given.get("hidden_states", given.get("sample"))
        seen += len(first) if isinstance(first, Tensor) else 0

    handle = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield lambda: seen
    finally:
        handle.remove()
