"""`distillkit new-method`: a plugin project to start from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def new_method(
    name: Annotated[str, typer.Argument(help="Name of the method, such as my-method.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where to put the project's folder.")] = Path(),
) -> None:
    """Write a new plugin project.

    Complete: package, configuration, objective, tests, README, CI.
    """
    from distillkit.cli.closing import console
    from distillkit.scaffold.project import names_of, write_project

    out, names = console(), names_of(name)
    written = write_project(name, output_dir)
    folder = output_dir / names.method
    for path in written:
        out.print(str(path), markup=False, highlight=False, soft_wrap=True)
    out.print(
        f"next: pip install -e {shlex.quote(str(folder))} && distillkit run {names.method} "
        f"&& distillkit check {names.method}\n"
        f"then write your own loss in {folder / names.package / 'objective.py'}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
