"""`distillkit sample`: pictures from a student or a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sample(
    subject: Annotated[
        str, typer.Argument(help="Run or student folder; RUN@best, RUN@STEP or RUN@average; or a teacher.")
    ],
    num: Annotated[int, typer.Option("--num", min=1, help="How many samples.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Sample i depends on (seed, i) alone.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", help="A .png becomes one grid; any other path a folder with one PNG a sample.")
    ] = Path("grid.png"),
    labels: Annotated[
        str | None,
        typer.Option(help="Classes by number or name, such as 3 or cat,dog, in turn.  [default: all in turn]"),
    ] = None,
    nfe: Annotated[int | None, typer.Option(min=1, help="Network evaluations of a sample.  [default: its own]")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance weight, for teachers.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Samples in one pass.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Generate samples with a distilled student, or with a teacher by its own solver."""
    import math

    from distillkit.errors import UsageError
    from distillkit.jobs.context import job_context
    from distillkit.jobs.sample import make_samples
    from distillkit.pictures import save_grid, tiles

    classes = None if labels is None else labels.split(",")
    with job_context(device=device) as context:
        made = make_samples(subject, num, context, seed=seed, classes=classes, nfe=nfe, guidance=guidance, batch=batch)
    if made.content == "points" and output.suffix.lower() != ".png":
        raise UsageError(f"--output {output}: points are drawn as one picture; name a .png file")
    pictures = tiles(made.decoded, made.content)
    if output.suffix.lower() == ".png":
        save_grid(output, pictures, math.ceil(math.sqrt(len(pictures))))
    else:
        for index, picture in enumerate(pictures):
            save_grid(output / f"{index:06d}.png", picture[None], 1, enlarge=False)
    typer.echo(f"wrote {output}: {num} samples, {made.nfe:g} network evaluation(s) each")
