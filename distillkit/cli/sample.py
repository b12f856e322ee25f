"""`distillkit sample`: pictures from a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sample(
    student: Annotated[Path, typer.Argument(help="Folder of a run or of a student.")],
    num: Annotated[int, typer.Option("--num", min=1, help="How many samples.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Sample i depends on (seed, i) alone.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", help="A .png becomes one grid; any other path a folder with one PNG a sample.")
    ] = Path("grid.png"),
    labels: Annotated[
        str | None, typer.Option(help="Class indices such as 3 or 0,1,2, repeated in turn.  [default: all in turn]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples in one pass.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Generate samples with a distilled student."""
    import math

    import torch

    from distillkit.errors import UsageError
    from distillkit.pictures import save_grid
    from distillkit.jobs.previews import drawn
    from distillkit.students.artifact import load_student

    loaded = load_student(student)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        loaded.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
    wanted = None
    if labels is not None:
        try:
            classes = torch.tensor([int(part) for part in labels.split(",")])
        except ValueError as error:
            raise UsageError(f"--labels {labels}: class indices are whole numbers, such as 0,1,2") from error
        wanted = classes.repeat(math.ceil(num / len(classes)))[:num]
    pixels = loaded(num, seed=seed, labels=wanted, batch=batch)
    if output.suffix.lower() == ".png":
        save_grid(output, drawn(pixels), math.ceil(math.sqrt(num)))
    elif not loaded.generator.spec.is_image:
        raise UsageError(f"--output {output}: points are drawn as one picture; name a .png file")
    else:
        for index, image in enumerate(pixels):
            save_grid(output / f"{index:06d}.png", image[None], 1, enlarge=False)
    nfe = loaded.description.nfe
    typer.echo(f"wrote {output}: {num} samples, {nfe:g} network evaluation(s) each")
