"""How `distillkit evaluate` is asked to measure, and which numbers it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distillkit.data.config import DataConfig
from distillkit.diffusion.solvers import SOLVERS, SolverName
from distillkit.dtypes import DTYPES
from distillkit.errors import UsageError
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.reference import Reference
from distillkit.models.diffusers.options import PipelineConfig
from distillkit.models.diffusers.published import PublishedConfig
from distillkit.runs.validation import validated


@dataclass(frozen=True)
class EvaluationOptions:
    """How to measure.

    Args:
        protocol: its name, or a file of `distillkit reference make`; the run's or the teacher's own by default.
        reference: own statistics in the place of the protocol's: a file, or an object.
        extractor: own extractor: a name, a TorchScript file, or an object.
        samples, first_seed: other samples than the protocol's, which is another protocol.
        nfe: numbers of network evaluations of a sample, a record for each; the subject's own by default.
        metrics: that are computed; the protocol's own by default.
        batch: samples in one pass.
        precision: "fp32", "bf16" or "fp16", of the generator; features are always computed in fp32.
        guidance: weight of a teacher or a pipeline, 1 by default; or of a student whose network takes one, its own by
            default.
        steps: of a teacher's solver, or of the scheduler of a pipeline of diffusers where no solver is named.
        solver: "heun", "euler" or "ddim", of a teacher; its own by default.
        resolution: of a pipeline's pictures: a side, or "WIDTHxHEIGHT"; its own by default.
        embedded_guidance: weight that is an input of a teacher's network (FLUX.1-dev); its own by default.
        guide_with: another teacher, by name, folder or file, that a teacher's guidance leads away from.
        lora, lora_scale, weights, scheduler, timesteps, eta: of a pipeline that is sampled by a scheduler, as
            `PublishedConfig` describes them; its own by default.
        prompts: file or `hf:DATASET[:COLUMN]` of the prompts that images are made of, which is another protocol; the
            protocol's own by default.
        clip: folder or `hf:ORG/REPO` of a CLIP by which images are compared with their prompts; the CLIP score alone
            where neither a protocol nor a reference is given.
        clip_prefix: before every prompt that CLIP reads.
        output: file (.json) or folder of the record.
        save_images: folder of PNG files, or a .npz file, where the images are kept as well.
        data_background, data_grey, data_image_column, data_max_pixels, skip_damaged: of given images, as `DataConfig`
            describes them.

    Raises:
        UsageError: for a value that cannot be.
    """

    protocol: str | None = None
    reference: Reference | Path | str | None = None
    extractor: FeatureExtractor | str | None = None
    samples: int | None = None
    first_seed: int = 0
    nfe: Sequence[int] = ()
    metrics: Sequence[str] = ()
    batch: int | None = None
    precision: str = "fp32"
    guidance: float | None = None
    steps: int | None = None
    solver: SolverName | None = None
    resolution: int | str | tuple[int, int] | None = None
    embedded_guidance: float | None = None
    guide_with: str | None = None
    lora: Path | str | None = None
    lora_scale: float | None = None
    weights: Path | str | None = None
    scheduler: Path | str | None = None
    timesteps: Sequence[int] | str | None = None
    eta: float | None = None
    prompts: Path | str | None = None
    clip: Path | str | None = None
    clip_prefix: str = ""
    output: Path | str | None = None
    save_images: Path | str | None = None
    data_background: str | None = None
    data_grey: bool = False
    data_image_column: str | None = None
    data_max_pixels: int | str | None = None
    skip_damaged: int | str = 0

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise UsageError(f"--precision {self.precision}: fp32, bf16 or fp16")
        least = {"samples": 2, "first_seed": 0, "batch": 1, "guidance": 0, "steps": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"--{name.replace('_', '-')} {value}: at least {low}")
        if self.solver not in (None, *SOLVERS):
            raise UsageError(f"--solver {self.solver}: {', '.join(SOLVERS)}")
        if self.steps is not None and self.nfe:
            raise UsageError("--steps and --nfe say the same twice: leave one out")
        if self.clip_prefix and not self.clip:
            raise UsageError("--clip-prefix is for --clip MODEL, and there is none")
        _ = self.pipeline, self.published
        self.images_at(None)
        if small := [nfe for nfe in self.nfe if nfe < 1]:
            raise UsageError(f"--nfe {small[0]}: at least 1")

    @property
    def weight(self) -> float:
        """The guidance weight of a teacher or a pipeline."""
        return 1.0 if self.guidance is None else self.guidance

    @property
    def pipeline(self) -> PipelineConfig:
        """What is asked of a pipeline.

        Raises:
            UsageError: for a value that cannot be.
        """
        return PipelineConfig.of(self.resolution, self.embedded_guidance, self.guide_with)

    @property
    def published(self) -> PublishedConfig:
        """How a pipeline is put together and called.

        Raises:
            UsageError: for a value that cannot be.
        """
        places = {name: getattr(self, name) for name in ("lora", "weights", "scheduler")}
        return PublishedConfig.of(
            **{name: None if place is None else str(place) for name, place in places.items()},
            lora_scale=self.lora_scale, timesteps=self.timesteps, eta=self.eta,
        )  # fmt: skip

    def images_at(self, path: str | None) -> DataConfig:
        """How given images are read.

        Raises:
            UsageError: for a value that cannot be.
        """
        asked = {
            "background": self.data_background, "grey": self.data_grey, "image_column": self.data_image_column,
            "max_pixels": self.data_max_pixels, "skip_damaged": self.skip_damaged,
        }  # fmt: skip
        given = {"path": path, **{name: value for name, value in asked.items() if value is not None}}
        return validated(DataConfig, given, None, {"data": given}, ("data",))

    def require_no_images(self, name: str) -> None:
        """Refuse what is said of images where something else is measured.

        Raises:
            UsageError: naming the option.
        """
        plain = EvaluationOptions()
        for option in ("data_background", "data_grey", "data_image_column", "data_max_pixels", "skip_damaged"):
            if getattr(self, option) != getattr(plain, option):
                raise UsageError(f"--{option.replace('_', '-')} is for images, and {name} is a generator")


MOST = {
    "samples": 10**9,
    "num": 10**8,
    "seed": 2**62,
    "first_seed": 2**62,
    "nfe": 20_000,
    "steps": 10_000,
    "guidance": 10**6,
}
"""The largest numbers that mean something, by the option's name."""


def within_bounds(**given: float | None) -> None:
    """Refuse numbers that no computer gets done with, or that are none.

    Args:
        given: by the option's name, such as first_seed.

    Raises:
        UsageError: naming the option and its bound.
    """
    for name, value in given.items():
        if value is not None and not 0 <= value <= MOST[name]:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {value:g}: write a number of at most {MOST[name]:,}, and none below 0")


def solver_steps(nfe: int, solver: SolverName, guidance: float = 1.0) -> int:
    """Steps of a solver that take so many evaluations.

    Raises:
        UsageError: where no number of steps does.
    """
    if guidance != 1.0:
        raise UsageError("--nfe counts unguided evaluations; with --guidance leave it out")
    if solver == "heun" and nfe % 2 == 0:
        raise UsageError(f"--nfe {nfe}: Heun's sampler takes an odd number of evaluations, 2 N - 1 for N steps")
    return (nfe + 1) // 2 if solver == "heun" else nfe
