"""`distillkit export`: a student for another library, and for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    student: Annotated[str, typer.Argument(help="Run or student folder; RUN@best or RUN@STEP for a checkpoint.")],
    folder: Annotated[Path | None, typer.Argument(help="Folder to write.  [default: STUDENT-FORMAT]")] = None,
    to: Annotated[
        str, typer.Option("--to", help="Format: diffusers, diffusers-lora (of adapters), or one of a plugin.")
    ] = "diffusers",
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="The folder to write, in place of the argument.")
    ] = None,
    self_contained: Annotated[
        bool,
        typer.Option("--self-contained", help="Copy what was not trained too, instead of naming where it is."),
    ] = False,
    push_to_hub: Annotated[
        str, typer.Option("--push-to-hub", metavar="ORG/NAME", help="Also upload it to this repository.")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Write a student for another library.

    A folder that it loads, with the model card; --push-to-hub also uploads it.
    """
    from distillkit.cli.closing import console
    from distillkit.errors import UsageError
    from distillkit.students.card import CARD
    from distillkit.students.export import export as write
    from distillkit.students.load import load_student
    from distillkit.students.plain_pipeline import parts_on_this_machine
    from distillkit.students.push import push

    if folder and output_dir:
        raise UsageError(f"two folders to write are given, {folder} and {output_dir}: leave one out")
    loaded, out = load_student(student), console()
    if push_to_hub and not self_contained and (place := parts_on_this_machine(loaded)):
        raise UsageError(
            f"the student's text encoder and autoencoder are in {place}, which nobody has who downloads the student: "
            "add --self-contained"
        )
    folder = folder or output_dir or Path(f"{student.rstrip('/').replace('@', '-')}-{to}")
    for path in write(loaded, to, folder, self_contained=self_contained):
        out.print(str(path), markup=False, highlight=False, soft_wrap=True)
    licence = loaded.description.teacher.licence
    if licence:
        out.print(f"the teacher's licence, which may bind this student too: {licence}", markup=False, highlight=False)
    if push_to_hub:
        out.print(f"pushed to {push(folder, push_to_hub, private=private)}", highlight=False, soft_wrap=True)
    out.print(f"next: {folder / CARD} says how it is used", markup=False, highlight=False, soft_wrap=True)
