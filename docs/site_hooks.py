"""Pages that are made when the site is built: the command line's reference, the notebook, reports of benchmarks."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from mkdocs.structure.files import File, Files

WIDTH = 100
NOTEBOOK = Path(__file__).with_name("notebook.ipynb")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "cli.md", content=cli_page()))
    files.append(File.generated(config, "notebook.md", content=notebook_page()))
    for name, page in reports():
        files.append(File.generated(config, f"results/{name}.html", content=page))
    return files


def notebook_page() -> str:
    """The notebook's cells as a page, which links to the file itself."""
    cells = [
        "".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    ]
    title, *rest = cells
    return "\n\n".join([title, f"[The notebook]({NOTEBOOK.name}), to run it.", *rest, ""])


def reports() -> Iterator[tuple[str, str]]:
    """Name and HTML of every benchmark whose records are in the repository, in the form of this version."""
    from distillkit.benchmark.report import HTML, pages
    from distillkit.benchmark.run import BenchResult
    from distillkit.errors import DistillkitError

    for found in sorted(RESULTS.glob("*/results.json")):
        try:
            result = BenchResult(found.parent)
            yield found.parent.name, pages(result.folder, result.results, result.leaderboard)[HTML]
        except DistillkitError as error:
            logging.getLogger("mkdocs.hooks").info("no report of %s: %s", found.parent.name, error)


def cli_page() -> str:
    """All commands with their help, as a terminal of 100 columns shows it."""
    lines = ["# Command line", "", "Made from the commands themselves. Every command also answers `--help`.", ""]
    for words in _commands():
        name = " ".join(("distillkit", *words))
        lines += [f"## {name}", "", "```text", _help(words), "```", ""]
    return "\n".join(lines)


def _commands() -> list[tuple[str, ...]]:
    """Every command; of the methods, one stands for all, since what differs is shown by `methods show`."""
    from distillkit.cli import app

    found: list[tuple[str, ...]] = [()]

    def walk(command: Any, words: tuple[str, ...]) -> None:
        if not hasattr(command, "list_commands"):
            return
        context = command.make_context("distillkit", [], resilient_parsing=True)
        names = ["dmd"] if words == ("run",) else command.list_commands(context)
        for name in names:
            found.append((*words, name))
            walk(command.get_command(context, name), (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def _help(words: tuple[str, ...]) -> str:
    """What `distillkit WORDS --help` prints, in this process: typer's width is a constant, click's the terminal's."""
    from typer import rich_utils

    from distillkit.cli import app

    out, said = io.StringIO(), {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    with (
        mock.patch.dict(os.environ, said),
        mock.patch.object(rich_utils, "MAX_WIDTH", WIDTH),
        contextlib.redirect_stdout(out),
        contextlib.suppress(typer.Exit),
    ):
        app([*words, "--help"], prog_name="distillkit", standalone_mode=False)
    return out.getvalue().strip()
