"""Pipelines of diffusers as they are, with their own scheduler, as what is measured: published few-step students."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.contracts.codec import Content
from distillkit.dtypes import DTYPES
from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.assembly import Assembly, assembled
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.pipeline_calls import Conditions, counted, drawing_from, latent_shape, network_of
from distillkit.evaluation.pipeline_scheduler import evaluated_steps
from distillkit.evaluation.protocol import SampleSpec
from distillkit.evaluation.record import Subject
from distillkit.evaluation.replacements import refused
from distillkit.evaluation.sampling import Tally, chooses_kernels, require_content, seeded_noise
from distillkit.models.diffusers.folder import folder_name, source_of
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
        shape, single = latent_shape(pipeline, self.size), len(batches) == 1

        def drawn(batch: range) -> Tensor:
            seeds = [spec.first_seed + index for index in batch]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            for generator in generators:  # what comes next is for the scheduler
                torch.randn(shape, generator=generator)
            return self.images(pipeline, conditions.at(batch), seeded_noise(seeds, shape), generators)

        with counted(network_of(pipeline)) as evaluations:
            for batch in batches:
                if single and chooses_kernels(device):
                    drawn(batch)
                    before -= evaluations()
                began = time.perf_counter()
                decoded = drawn(batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                # The first batch pays for one-time set-up; it counts only if there is no other.
                timed = batch != batches[0] or single
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
        with drawing_from(pipeline.scheduler, generators), refused(refuses):
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
