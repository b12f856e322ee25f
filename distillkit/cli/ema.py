"""`distillkit ema`: an average of any width out of those that a training has kept."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from distillkit.cli.choices import offered, run_folders


def ema(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Run that was trained with --ema-sigmas; or a folder of averages of EDM2's training, or such files.",
            autocompletion=run_folders,
        ),
    ],
    sigma_rel: Annotated[
        float, typer.Option("--sigma-rel", help="Relative width of the average: 0.05 to 0.25 is usual.")
    ],
    at: Annotated[
        str | None, typer.Option(help="Images of the training at whose time it is taken: 64M.  [default: the last]")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder to make.  [default: SOURCE-ema-SIGMA]")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="Whose network the files hold, where they do not say: name or folder.",
            autocompletion=offered("teachers"),
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of a teacher.  [default: as it was trained]")] = None,
    licence: Annotated[str, typer.Option(help="Licence of a teacher's weights, recorded with every student.")] = "",
) -> None:
    """Average a training's weights anew (post-hoc EMA).

    The student or teacher of a training with another moving average of its weights than the one it wrote: of any width,
    made of those that it kept with --ema-sigmas 0.05,0.10. One tensor is in memory at a time.
    """
    from pydantic import TypeAdapter, ValidationError

    from distillkit.cli.closing import console
    from distillkit.counts import Count
    from distillkit.errors import UsageError
    from distillkit.jobs.ema import make_average

    try:
        images = None if at is None else TypeAdapter(Count).validate_python(at)
    except ValidationError as error:
        raise UsageError(f"--at {at}: write a number of images, such as 5000, 200k or 1.5M") from error
    made = make_average(sources, sigma_rel, output_dir, at=images, like=like, name=name, licence=licence)
    out, place = console(), shlex.quote(str(made.folder))
    out.print(f"written to {made.folder}", highlight=False, soft_wrap=True, markup=False)
    out.print(f"next: distillkit sample {place} --output grid.png", highlight=False, soft_wrap=True, markup=False)
