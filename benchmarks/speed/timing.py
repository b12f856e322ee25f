"""Times of several things within one run, in turn, and the memory that autograd holds."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from distillkit import Teacher, load_teacher
from distillkit.environment import environment
from distillkit.models.store.resolve import default_teacher


def in_turn(actions: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per call of each action, timed in turn: a drift of the machine's speed meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            began = time.perf_counter()
            for _ in range(repeats):
                action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - began) / repeats)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def show(title: str, figures: dict[str, float]) -> None:
    """A table of ratios."""
    table = Table("figure", "ratio", title=title)
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    Console(width=110).print(table)


def command_line(doc: str | None, batch: int) -> argparse.ArgumentParser:
    """What scripts on a teacher take: its name, a batch, a file for the figures; `doc` begins with the help's line."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--teacher", default=default_teacher())
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def write(path: Path | None, figures: Mapping[str, object]) -> None:
    """Figures and where they were measured, into a file if one was asked for."""
    if path:
        path.write_text(json.dumps({**figures, "environment": environment()}, indent=2) + "\n")


@dataclass(frozen=True)
class Bench:
    """A script's teacher, device and numbers, from its command line; and its report."""

    teacher: Teacher
    accelerator: Accelerator
    batch: int
    rounds: int
    repeats: int
    json: Path | None

    @classmethod
    def from_command_line(cls, doc: str | None) -> Bench:
        """The first line of `doc` is the help's."""
        parser = command_line(doc, batch=64)
        parser.add_argument("--rounds", type=int, default=15)
        parser.add_argument("--repeats", type=int, default=4)
        given = vars(parser.parse_args())
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
        teacher = load_teacher(given.pop("teacher")).to(accelerator.device)
        return cls(teacher, accelerator, **given)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def in_turn(self, actions: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds per call of each action."""
        return in_turn(actions, self.rounds, self.repeats)

    def report(
        self, what: str, figures: dict[str, float], seconds: Mapping[str, list[float]], **others: dict[str, float]
    ) -> None:
        """Show the ratios, and the medians of every action behind them; write all where it was asked for.

        Args:
            others: what else was found of each action, by its unit.
        """
        show(f"{what} on {self.teacher.spec.name}, batch {self.batch}, {self.device}", figures)
        found = {"milliseconds": {name: statistics.median(values) * 1e3 for name, values in seconds.items()}, **others}
        for unit, values in found.items():
            print(f"{unit}: {', '.join(f'{name} {value:.1f}' for name, value in values.items())}")
        write(self.json, {"figures": figures, **found, "batch": self.batch, "teacher": self.teacher.spec.name})
