"""`distillkit sample` and `distillkit teachers sample`: pictures from a student or a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    subjects,
)

if TYPE_CHECKING:
    from distillkit.jobs.sample import Made

OTHER_FILES = frozenset(
    {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy", ".pt", ".safetensors", ".zip"}
)
"""Names of files that people expect and that are not written; a folder is not called so."""
SOLVERS = ("heun", "euler", "ddim")


def sample(
    ctx: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            help="Run or student folder; RUN@best, RUN@STEP or RUN@average; or a teacher.", autocompletion=subjects
        ),
    ],
    num: Annotated[
        int | None,
        typer.Option("--num", min=1, help="How many samples.  [default: 64; one a prompt, 64 of a file; 8192 points]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Sample i depends on (seed, i) alone.")] = 0,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            help="A .png becomes one grid, a .npz one array (arr_0); any other path a folder with one PNG a sample.",
        ),
    ] = Path("grid.png"),
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Text to draw, where the model draws text; may be repeated.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="File of prompts, or hf:ORG/NAME:COLUMN; its first ones are drawn.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", "--classes", help="Classes by number or name, such as 3 or cat,dog, in turn.  [default: all]"
        ),
    ] = None,
    nfe: Annotated[int | None, typer.Option(min=1, help="Network evaluations of a sample.  [default: its own]")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="Guidance weight, for teachers and students that take one.  [default: 1; its own]"),
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="Text to guide away from, for teachers.  [default: no text]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a teacher's solver, or of a student.  [default: its own]")
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(SOLVERS)}, for teachers.  [default: its own]", autocompletion=lambda: [*SOLVERS]
        ),
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
    batch: Annotated[int | None, typer.Option(min=1, help="Samples in one pass.  [default: by their size]")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Generate samples with a student or a teacher.

    A teacher is sampled by its own solver; a pipeline of diffusers with --steps and no --solver by its own scheduler,
    except by `teachers sample`.
    """
    from distillkit.errors import UsageError
    from distillkit.jobs.context import job_context
    from distillkit.jobs.prompts import typed_prompts
    from distillkit.jobs.sample import make_samples
    from distillkit.models.diffusers.options import PipelineConfig
    from distillkit.models.diffusers.published import PublishedConfig

    if output.suffix.lower() in OTHER_FILES:
        raise UsageError(f"--output {output}: a .png or .npz file is written, or a folder of PNG files")
    published = PublishedConfig.of(
        lora=lora, lora_scale=lora_scale, weights=weights, scheduler=scheduler, timesteps=timesteps, eta=eta
    )
    if as_teacher := ctx.parent is not None and ctx.parent.info_name == "teachers":
        published.refuse_for("teachers are sampled by their solvers here: distillkit sample takes it")
    classes = None if labels is None else labels.split(",")
    texts = typed_prompts(prompt, prompts, num)
    with job_context(device=device) as context:
        made = make_samples(
            subject, num, context, seed=seed, classes=classes, prompts=texts, nfe=nfe,
            steps=steps, solver=solver, guidance=guidance, negative=negative, batch=batch,
            pipeline=PipelineConfig.of(resolution, embedded_guidance, guide_with),
            published=None if as_teacher else published,
        )  # fmt: skip
    write_samples(output, made)
    typer.echo(f"wrote {output}: {len(made.decoded)} samples, {made.nfe:g} network evaluation(s) each")


def write_samples(output: Path, made: Made) -> None:
    """Write samples as the name says: one grid, one array, or a folder of pictures, with their prompts beside them.

    Raises:
        UsageError: for points in a folder.
        DistillkitError: when nothing can be written there.
    """
    import math

    import numpy as np

    from distillkit.errors import UsageError
    from distillkit.files import replacing, write_bytes
    from distillkit.pictures import save_grid, tiles

    suffix = output.suffix.lower()
    if made.content == "points" and suffix not in (".png", ".npz"):
        raise UsageError(f"--output {output}: points are drawn as one picture; name a .png or .npz file")
    if suffix == ".npz":
        # Pictures with their channels last, as ADM's tools read them; points as they are.
        images = made.decoded.movedim(1, -1) if made.content == "images" else made.decoded
        with replacing(output) as aside, aside.open("wb") as file:
            np.savez(file, images.numpy())
        return
    pictures = tiles(made.decoded, made.content)
    captions = [] if made.content == "points" else made.captions
    if suffix == ".png":
        save_grid(output, pictures, math.ceil(math.sqrt(len(pictures))), captions=captions)
        return
    for index, picture in enumerate(pictures):
        save_grid(output / f"{index:06d}.png", picture[None], 1, enlarge=False)
        if any(captions):
            write_bytes(output / f"{index:06d}.txt", f"{captions[index]}\n".encode())
