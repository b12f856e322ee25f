"""Pipelines of diffusers as they are, with their own scheduler, as what is measured: published few-step students."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.contracts.codec import Content
from distillkit.dtypes import DTYPES
from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.assembly import Assembly, assembled
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.pipeline_scheduler import evaluated_steps
from distillkit.evaluation.protocol import SampleSpec
from distillkit.evaluation.record import Subject
from distillkit.evaluation.replacements import refused
from distillkit.evaluation.sampling import Tally, require_content, seeded_noise
from distillkit.models.diffusers.folder import COMPONENTS, folder_name, source_of
from distillkit.models.diffusers.published import PLAIN_SAMPLING, PublishedConfig

STARTS = 0.95
"""Share of a schedule's steps below which a first step is not that of pure noise."""


@dataclass(frozen=True)
class WholePipeline:
    """A pipeline that is called as its users call it, on the protocol's noise and prompts.

    Args:
        subject: what the record says of it.
        assembly: the pipeline's folder, and what takes the place of its own parts.
        steps, guidance: `num_inference_steps` and `guidance_scale` of the call.
        evaluated: the training steps of its evaluations; None where only the pipeline can tell.
        size: height and width of its pictures; its own by default.
    """

    subject: Subject
    assembly: Assembly
    steps: int
    guidance: float
    evaluated: Sequence[float] | None = None
    size: tuple[int, int] | None = None
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def content(self) -> Content:
        return "images"

    def samples_of(self, spec: SampleSpec) -> SampleSpec:
        labels = spec.labels if spec.labels != "none" else "index mod classes"
        return spec.model_copy(update={"labels": labels})

    def identity(self) -> Mapping[str, Any]:
        subject, scheduler = self.subject, self.assembly.scheduler
        return {
            "files": dict(self.assembly.files), "sampler": subject.sampler, "guidance": self.guidance,
            "precision": subject.precision, "scheduler": dict(scheduler.config),
        }  # fmt: skip

    @property
    def summary(self) -> str:
        """How it is sampled, in a line; a warning where it does not start at the most noise."""
        scheduler, variant = type(self.assembly.scheduler).__name__, self.assembly.variant
        text = f"sampled by its own pipeline, {scheduler}"
        if self.evaluated:
            text += f" at t = {', '.join(f'{t:g}' for t in self.evaluated)}"
        if variant and not self.assembly.weights:
            text += f", the {variant} variant of its weights"
        last = int(getattr(self.assembly.scheduler.config, "num_train_timesteps", 0) or 0) - 1
        if self.evaluated and not self.assembly.asked.timesteps and self.evaluated[0] < STARTS * last:
            spacing = getattr(self.assembly.scheduler.config, "timestep_spacing", None)
            text += (
                f". Its first step is {self.evaluated[0]:g} of {last}, and it is given pure noise: "
                f"{f'timestep_spacing is {spacing}; ' if spacing else ''}--timesteps or --scheduler "
                "NAME,timestep_spacing=trailing starts it at the last step"
            )
        return text

    @torch.inference_mode()
    def draw(self, measure: Measure, batches: Sequence[range], device: torch.device, tally: Tally) -> Iterator[Tensor]:
        pipeline, before, spec = self.pipeline(device), tally.evaluations, measure.protocol.samples
        conditions = Conditions.of(pipeline, measure.prompts, self.subject.name)
        if spec.rng == "sobol":
            raise UsageError("pipelines are measured on random noise, and this protocol's is a Sobol sequence")
        shape = latent_shape(pipeline, self.size)
        with counted(network_of(pipeline)) as evaluations:
            for batch in batches:
                began = time.perf_counter()
                seeds = [spec.first_seed + index for index in batch]
                generators = [torch.Generator().manual_seed(seed) for seed in seeds]
                for generator in generators:  # what comes next is for the scheduler
                    torch.randn(shape, generator=generator)
                decoded = self.images(pipeline, conditions.at(batch), seeded_noise(seeds, shape), generators)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                # The first batch pays for one-time set-up; it counts only if there is no other.
                timed = batch != batches[0] or len(batches) == 1
                tally.add(len(batch), time.perf_counter() - began, timed=timed)
                tally.evaluations = before + evaluations()
                yield require_content(decoded.to(device), "images")

    def images(
        self, pipeline: Any, condition: Mapping[str, Any], noise: Tensor, generators: list[torch.Generator]
    ) -> Tensor:
        """Images (B, C, H, W) uint8 on the CPU.

        Args:
            condition: arguments of the call: what the images show.
            noise: (B, c, h, w) standard normal: the latents.
            generators: of the fresh noise of each sample.

        Raises:
            UsageError: for a size or an option that the pipeline does not take.
            DistillkitError: when diffusers refuses the call, or images are not finite.
        """
        known, asked = inspect.signature(pipeline.__call__).parameters, self.assembly.asked
        call: dict[str, Any] = {"num_inference_steps": self.steps, "output_type": "np", **condition}
        if "guidance_scale" in known:
            call["guidance_scale"] = self.guidance
        if "batch_size" in known:
            call["batch_size"] = len(noise)
        if self.size and not {"height", "width"} <= known.keys():
            raise UsageError(f"a {type(pipeline).__name__} makes pictures of one size: leave --resolution out")
        if self.size:
            call["height"], call["width"] = self.size
        for name, value in (("timesteps", list(asked.timesteps) or None), ("eta", asked.eta)):
            if value is not None and name not in known:
                raise UsageError(f"--{name}: a {type(pipeline).__name__} of diffusers takes none")
            if value is not None:
                call[name] = value
        if "use_resolution_binning" in known:
            call["use_resolution_binning"] = False
        if "latents" in known:
            packed = getattr(pipeline, "_pack_latents", None)
            latents = packed(noise, len(noise), *noise.shape[1:]) if packed else noise
            call["latents"] = latents.to(pipeline.device, next(network_of(pipeline).parameters()).dtype)
        refuses = f"{self.subject.name}: diffusers refuses the call"
        with _drawing_from(pipeline.scheduler, generators), refused(refuses):
            made = torch.from_numpy(pipeline(generator=generators, **call).images)
        if not torch.isfinite(made).all():
            raise DistillkitError(f"{self.subject.name} gives NaN or infinity instead of images")
        # As `Pixels.decode`: rounded half up in float32.
        return (made.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 2)

    def pipeline(self, device: torch.device) -> Any:
        """The pipeline of diffusers, loaded when it is first asked for."""
        if not self._loaded:
            pipeline = self.assembly.load()
            if (found := evaluated_steps(pipeline.scheduler, self.steps, self.assembly.asked)) != self.evaluated:
                raise DistillkitError(
                    f"{self.assembly.folder}: diffusers corrects the scheduler's configuration as it loads it, after "
                    f"which the steps are {found} and not {self.evaluated}: correct scheduler_config.json, as it asks"
                )
            with refused(f"{self.assembly.folder} cannot be moved to {device}"):
                self._loaded["pipeline"] = pipeline.to(device, DTYPES[self.subject.precision])
        return self._loaded["pipeline"]


def whole_pipeline(
    folder: Path, steps: int | None, guidance: float, *, precision: str = "fp32", name: str = "",
    size: tuple[int, int] | None = None, published: PublishedConfig = PLAIN_SAMPLING,
) -> WholePipeline:  # fmt: skip
    """A pipeline's folder as what is measured.

    Args:
        steps: as many as there are `timesteps` where these are given.
        size: height and width of its pictures; its own by default.
        published: what takes the place of its own parts, and what else it is called with.

    Raises:
        UsageError: for a pipeline that brings code, parts that diffusers and transformers do not have, or options that
            do not fit it.
        DistillkitError: when its files are damaged.
    """
    timesteps = published.timesteps
    if steps is None and not timesteps:
        raise UsageError(f"{published.options[0] if published.options else folder}: say how many steps, by --steps N")
    if steps is not None and timesteps and steps != len(timesteps):
        raise UsageError(f"--steps {steps} and {len(timesteps)} --timesteps say two things: leave --steps out")
    steps = steps or len(timesteps)
    assembly = assembled(folder, published, precision)
    scheduler, evaluated = type(assembly.scheduler).__name__, assembly.steps(steps)
    title = f"{name or folder_name(folder)}{assembly.title}{f' {size[1]}x{size[0]}' if size else ''}"
    sampler: dict[str, Any] = {"kind": f"diffusers:{scheduler}", "steps": steps}
    sampler |= {"timesteps": evaluated} if evaluated else {}
    sampler |= {"resolution": [size[1], size[0]]} if size else {}
    sampler |= published.recorded
    subject = Subject(
        kind="pipeline", name=f"{title}, {steps} {scheduler} step{'' if steps == 1 else 's'}{published.suffix}",
        weights_sha256=assembly.network_sha256, teacher=source_of(folder), sampler=sampler, guidance=guidance,
        precision=precision,
    )  # fmt: skip
    return WholePipeline(subject, assembly, steps, guidance, evaluated, size)


def network_of(pipeline: Any) -> nn.Module:
    network: nn.Module = next(n for name in COMPONENTS if (n := getattr(pipeline, name, None)) is not None)
    return network


def latent_shape(pipeline: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(C, h, w) of the noise, for pictures of this height and width or the pipeline's own.

    Raises:
        UsageError: where the pipeline does not say it.
    """
    config: Any = network_of(pipeline).config
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
class Conditions:
    """What a pipeline makes images of: prompts, classes in turn, or nothing."""

    prompts: Sequence[str] = ()
    classes: int = 0
    chosen: tuple[int, ...] = ()

    @classmethod
    def of(cls, pipeline: Any, prompts: Sequence[str], name: str) -> Conditions:
        """What a pipeline is asked for.

        Raises:
            UsageError: for prompts where it takes none, or none where it takes some.
        """
        known = inspect.signature(pipeline.__call__).parameters
        if "prompt" in known:
            if not prompts:
                raise UsageError(f"{name} makes pictures of text: --prompts FILE, or a protocol with prompts")
            return cls(prompts=prompts)
        if prompts:
            raise UsageError(f"{name} takes no prompts, and some are given")
        return cls(classes=int(getattr(network_of(pipeline).config, "num_embeds_ada_norm", 0) or 0))

    def only(self, classes: Sequence[str]) -> Conditions:
        """The same of some classes alone, by number, in turn.

        Raises:
            UsageError: for what is no class, or where there are none.
        """
        if not self.classes:
            raise UsageError("--labels: this pipeline takes no classes")
        if wrong := [name for name in classes if not (name.isdecimal() and int(name) < self.classes)]:
            raise UsageError(f"--labels {wrong[0]}: numbers from 0 to {self.classes - 1}")
        return replace(self, chosen=tuple(int(name) for name in classes))

    def caption(self, index: int) -> str:
        """What a sample shows, for people."""
        if self.prompts:
            return self.prompts[index % len(self.prompts)]
        return str(self._label(index)) if self.classes else ""

    def _label(self, index: int) -> int:
        return self.chosen[index % len(self.chosen)] if self.chosen else index % self.classes

    def at(self, batch: range) -> dict[str, Any]:
        """The arguments of a call for samples at these indices."""
        if self.prompts:
            return {"prompt": [self.prompts[index % len(self.prompts)] for index in batch]}
        return {"class_labels": [self._label(index) for index in batch]} if self.classes else {}


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
