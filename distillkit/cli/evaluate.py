"""`distillkit evaluate`: measure a student, a teacher or images under a protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distillkit.cli.choices import (
    DeviceOption,
    EmbeddedGuidanceOption,
    EtaOption,
    GuideWithOption,
    LoraOption,
    LoraScaleOption,
    ResolutionOption,
    SchedulerOption,
    TimestepsOption,
    WeightsOption,
    count_of,
    offered,
    subjects,
)


def evaluate(
    subject: Annotated[
        str,
        typer.Argument(
            help="Run, RUN@best or student folder, teacher (name, folder, file), pipeline of diffusers, or images.",
            autocompletion=subjects,
        ),
    ],
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Protocol by name, or a file of `reference make`.  [default: the run's or the teacher's]",
            autocompletion=offered("protocols"),
        ),
    ] = None,
    samples: Annotated[
        str, typer.Option(help="Another number of samples, such as 1k, which is another protocol.  [default: its own]")
    ] = "",
    first_seed: Annotated[int, typer.Option("--first-seed", min=0, help="Sample i has seed FIRST + i.")] = 0,
    nfe: Annotated[
        str, typer.Option(help="Network evaluations of a sample, one record for each: 5,9,35.  [default: its own]")
    ] = "",
    metrics: Annotated[
        str,
        typer.Option(
            help="fd, kid, prdc (precision, recall, density, coverage), is, memorisation, clip.  [default: its own]"
        ),
    ] = "",
    reference: Annotated[
        Path | None, typer.Option(help="Own reference statistics, from `distillkit reference make`.")
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="Feature extractor by name, or a TorchScript file (a program: trust it first).",
            autocompletion=offered("extractors"),
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Guidance weight, for teachers, pipelines and students that take one.  [default: 1; its own]"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of a teacher's solver, of a diffusers pipeline's own scheduler, or of a student."
        ),
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="heun, euler or ddim: sample a pipeline as a teacher.  [default: its own]")
    ] = None,
    resolution: ResolutionOption = None,
    embedded_guidance: EmbeddedGuidanceOption = None,
    guide_with: GuideWithOption = None,
    lora: LoraOption = None,
    lora_scale: LoraScaleOption = None,
    weights: WeightsOption = None,
    scheduler: SchedulerOption = None,
    timesteps: TimestepsOption = None,
    eta: EtaOption = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Prompts, a file or hf:ORG/NAME[:COLUMN]; another protocol.  [default: the protocol's]"),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP (folder or hf:ORG/REPO) that compares images with their prompts.")
    ] = None,
    clip_prefix: Annotated[str, typer.Option("--clip-prefix", help="Text before every prompt that CLIP reads.")] = "",
    precision: Annotated[
        str | None,
        typer.Option(help="Of the generator: fp32, bf16 or fp16. Features are in fp32.  [default: fp32]"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples in one pass; does not change which they are.  [default: by size]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Record (.json) or folder.  [default: SUBJECT/records]")
    ] = None,
    save_images: Annotated[
        Path | None, typer.Option("--save-images", help="Also keep the images: a folder of PNG, or a .npz file.")
    ] = None,
    data_background: Annotated[
        str | None, typer.Option("--data-background", help="Of images: colour behind transparent parts.")
    ] = None,
    data_grey: Annotated[bool, typer.Option("--data-grey", help="Of images: convert them to grey.")] = False,
    data_image_column: Annotated[
        str | None, typer.Option("--data-image-column", help="Of images: their column, where there are several.")
    ] = None,
    data_max_pixels: Annotated[
        str | None, typer.Option("--data-max-pixels", help="Of images: refuse those with more pixels.  [default: 67M]")
    ] = None,
    skip_damaged: Annotated[
        int, typer.Option("--skip-damaged", min=0, help="Of images: replace up to so many damaged ones by others.")
    ] = 0,
    device: DeviceOption = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure a student, a teacher or images.

    The record says under which protocol, with which error and at how many network evaluations. An interrupted
    measurement goes on when the same command is given again.
    """
    from distillkit.cli.closing import console, show_records
    from distillkit.errors import UsageError
    from distillkit.jobs.api import evaluate_all

    try:
        evaluations = tuple(int(part) for part in nfe.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"--nfe {nfe}: write whole numbers such as 1,2,4") from error
    if nfe and not evaluations:
        raise UsageError(f"--nfe {nfe}: write whole numbers such as 1,2,4")
    made = evaluate_all(
        subject, protocol, device=device, quiet=quiet, reference=reference, extractor=extractor,
        samples=count_of(samples, "--samples"),
        first_seed=first_seed, nfe=evaluations, metrics=tuple(m.strip() for m in metrics.split(",") if m.strip()),
        batch=batch, precision=precision, guidance=guidance, steps=steps, solver=solver,
        resolution=resolution, embedded_guidance=embedded_guidance, guide_with=guide_with,
        lora=lora, lora_scale=lora_scale, weights=weights,
        scheduler=scheduler, timesteps=timesteps, eta=eta,
        prompts=prompts, clip=clip, clip_prefix=clip_prefix, output=output, save_images=save_images,
        data_background=data_background, data_grey=data_grey, data_image_column=data_image_column,
        data_max_pixels=data_max_pixels, skip_damaged=skip_damaged,
    )  # fmt: skip
    if made:
        show_records(console(), list(made))
