"""Pages that are made when the site is built: the command line's reference, from the command line itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import typer
from mkdocs.structure.files import File, Files

WIDTH = "100"


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "cli.md", content=cli_page()))
    return files


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
