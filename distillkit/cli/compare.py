"""`distillkit compare`: records side by side, if they are comparable."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from distillkit.cli.choices import CONFIG


def compare(
    records: Annotated[list[Path], typer.Argument(help="Records, or folders that hold records.")],
    group: Annotated[
        bool, typer.Option("--group", help="A table for each protocol instead of refusing several.")
    ] = False,
) -> None:
    """Compare records of one protocol.

    Shows errors and paired differences, and refuses to mix protocols.
    """
    from distillkit.cli.closing import console, show_comparison
    from distillkit.errors import UsageError
    from distillkit.evaluation.compare import compare as compared
    from distillkit.evaluation.record import read_record

    paths: list[Path] = []
    for path in records:
        is_run = (path / "records").is_dir() or (path / CONFIG).is_file()
        inside = path / "records" if is_run else path
        found = [path]
        if is_run or inside.is_dir():
            found = sorted(inside.glob("*.json"))
        if not found:
            raise UsageError(f"{path} holds no records; make one: distillkit evaluate {shlex.quote(str(path))}")
        paths += found
    tables, quoted = compared([read_record(path) for path in paths], group=group)
    show_comparison(console(), tables, quoted)
