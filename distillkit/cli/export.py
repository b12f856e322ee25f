"""`distillkit export`: a student for another library, and for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    student: Annotated[str, typer.Argument(help="Run or student folder; RUN@best or RUN@STEP for a checkpoint.")],
    to: Annotated[str, typer.Option("--to", help="Format: diffusers, or one of a plugin.")] = "diffusers",
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder to write.  [default: STUDENT-FORMAT]")
    ] = None,
    push_to_hub: Annotated[
        str, typer.Option("--push-to-hub", metavar="ORG/NAME", help="Also upload it to this repository.")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Write a student for another library.

    A folder that it loads, with the model card; --push-to-hub also uploads it.
    """
    from distillkit.cli.closing import console
    from distillkit.students.artifact import load_student
    from distillkit.students.export import export as write
    from distillkit.students.push import push

    loaded, out = load_student(student), console()
    folder = output_dir or Path(f"{student.rstrip('/').replace('@', '-')}-{to}")
    for path in write(loaded, to, folder):
        out.print(str(path), markup=False, highlight=False, soft_wrap=True)
    licence = loaded.description.teacher.licence
    if licence:
        out.print(f"the teacher's licence, which may bind this student too: {licence}", markup=False, highlight=False)
    if push_to_hub:
        out.print(f"pushed to {push(folder, push_to_hub, private=private)}", highlight=False, soft_wrap=True)
    if to == "diffusers":
        load = f"DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)"
        out.print(f"next: {load}(batch_size=16).images", soft_wrap=True)
