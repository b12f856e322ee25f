"""Pages that are made when the site is built: the command line's reference and the reports of benchmarks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

WIDTH = "100"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "cli.md", content=cli_page()))
    for name, page in reports():
        files.append(File.generated(config, f"results/{name}.html", content=page))
    return files


def reports() -> Iterator[tuple[str, str]]:
    """Name and HTML of every benchmark whose records are in the repository."""
    from distillkit.benchmark.report import HTML, pages
    from distillkit.benchmark.run import BenchResult
    from distillkit.errors import DistillkitError

    for found in sorted(RESULTS.glob("*/results.json")):
        try:
            result = BenchResult(found.parent)
            yield found.parent.name, pages(result.folder, result.results, result.leaderboard)[HTML]
        except DistillkitError as error:
            logging.getLogger("mkdocs.hooks").warning("no report of %s: %s", found.parent.name, error)


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
    environment = {**os.environ, "COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "distillkit", *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
