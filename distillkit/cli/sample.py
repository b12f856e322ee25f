"""`distillkit sample`: pictures from a student or a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distillkit.cli.choices import DeviceOption, subjects

OTHER_FILES = frozenset(
    {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy", ".pt", ".safetensors", ".zip"}
)
"""Names of files that people expect and that are not written; a folder is not called so."""


def sample(
    subject: Annotated[
        str,
        typer.Argument(
            help="Run or student folder; RUN@best, RUN@STEP or RUN@average; or a teacher.", autocompletion=subjects
        ),
    ],
    num: Annotated[
        int | None, typer.Option("--num", min=1, help="How many samples.  [default: 64; 8192 points]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Sample i depends on (seed, i) alone.")] = 0,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            help="A .png becomes one grid, a .npz one array (arr_0); any other path a folder with one PNG a sample.",
        ),
    ] = Path("grid.png"),
    labels: Annotated[
        str | None,
        typer.Option(help="Classes by number or name, such as 3 or cat,dog, in turn.  [default: all in turn]"),
    ] = None,
    nfe: Annotated[int | None, typer.Option(min=1, help="Network evaluations of a sample.  [default: its own]")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance weight, for teachers.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Samples in one pass.")] = 256,
    device: DeviceOption = "auto",
) -> None:
    """Generate samples with a student or a teacher. A teacher is sampled by its own solver."""
    import math

    import numpy as np

    from distillkit.errors import UsageError
    from distillkit.files import replacing
    from distillkit.jobs.context import job_context
    from distillkit.jobs.sample import make_samples
    from distillkit.pictures import save_grid, tiles

    suffix = output.suffix.lower()
    if suffix in OTHER_FILES:
        raise UsageError(f"--output {output}: a .png or .npz file is written, or a folder of PNG files")
    classes = None if labels is None else labels.split(",")
    with job_context(device=device) as context:
        made = make_samples(subject, num, context, seed=seed, classes=classes, nfe=nfe, guidance=guidance, batch=batch)
    if made.content == "points" and suffix not in (".png", ".npz"):
        raise UsageError(f"--output {output}: points are drawn as one picture; name a .png or .npz file")
    if suffix == ".npz":
        # Pictures with their channels last, as ADM's tools read them; points as they are.
        images = made.decoded.movedim(1, -1) if made.content == "images" else made.decoded
        with replacing(output) as aside, aside.open("wb") as file:
            np.savez(file, images.numpy())
    elif suffix == ".png":
        pictures = tiles(made.decoded, made.content)
        save_grid(output, pictures, math.ceil(math.sqrt(len(pictures))))
    else:
        pictures = tiles(made.decoded, made.content)
        for index, picture in enumerate(pictures):
            save_grid(output / f"{index:06d}.png", picture[None], 1, enlarge=False)
    typer.echo(f"wrote {output}: {len(made.decoded)} samples, {made.nfe:g} network evaluation(s) each")
