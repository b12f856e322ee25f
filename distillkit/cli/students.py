"""`distillkit students`: students that others have published, as students like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distillkit.cli.choices import offered

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Convert published students. Weights that others have published become a student for every command.",
)


@app.callback()
def students() -> None: ...


@app.command()
def convert(
    file: Annotated[
        str, typer.Argument(help="EDM .pkl, torch.save file or .safetensors: a path, or hf:ORG/REPO/FILE[@REVISION].")
    ],
    levels: Annotated[
        str,
        typer.Option(
            help="Noise levels (sigma / alpha) of its evaluations, such as 2.5 (SiD) or 80 (DMD2); 80,0.8 for two."
        ),
    ],
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder to make.  [default: the file's name]")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="That it was distilled from: its network, where the file holds weights alone, and its protocol.",
            autocompletion=offered("teachers"),
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the student.  [default: the file's name]")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights, kept on its card.")] = "",
) -> None:
    """Turn published weights of a one- or few-step generator into a student folder. Nothing in the file is executed."""
    import shlex

    from distillkit.cli.closing import console
    from distillkit.errors import UsageError
    from distillkit.evaluation.presets import protocol_for
    from distillkit.files import require_new, write_bytes
    from distillkit.students.card import CARD, card
    from distillkit.students.imported import convert_student

    try:
        ratios = tuple(float(part) for part in levels.split(","))
    except ValueError as error:
        raise UsageError(f"--levels {levels}: write numbers such as 2.5 or 80,0.8") from error
    folder = output_dir or Path(Path(file.partition("@")[0]).stem)
    require_new(folder)
    out = console()
    student = convert_student(
        file, ratios, teacher=teacher, name=name, licence=licence,
        say=lambda line: out.print(line, highlight=False, soft_wrap=True, markup=False),
    )  # fmt: skip
    student.save(folder)
    write_bytes(folder / CARD, card(student.description).encode())
    described = student.description
    shape, where = " x ".join(map(str, described.shape)), shlex.quote(str(folder))
    decoded = student.codec.decoded_shape(described.shape)
    known = protocol_for(described.teacher.name, decoded, student.conditioner.count)
    measure = f"distillkit evaluate {where}{'' if known else ' --protocol NAME, one of `distillkit protocols`'}"
    out.print(
        f"{described.network['kind']} for samples {shape}, {described.nfe:g} network evaluation(s) a sample, at "
        f"sigma / alpha {levels}\n"
        f"student in {folder}\nnext: distillkit sample {where} --output grid.png; {measure}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip
