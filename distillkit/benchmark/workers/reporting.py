"""What a worker reports: lines into its log, and where it is into a small file, which the bench shows."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import RenderableType

from distillkit.benchmark.workers.messages import Place, State
from distillkit.progress import Plain, Task, Terminal

SHOWN_SECONDS = 0.5


class FileReporter:
    """Reports on one assignment of a worker.

    Args:
        place: the worker's.
        number: the assignment's.
    """

    def __init__(self, place: Place, number: int) -> None:
        self.place, self.number = place, number
        self._log = Plain(Terminal(file=sys.stdout, width=100))
        place.show(State(number=number, title="starting"))

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        with self._log.task(title, total, unit, done) as line:
            shown = _Shown(self, line, State(number=self.number, title=title, done=done, total=total, unit=unit))
            yield shown
            shown.show()

    def say(self, message: str) -> None:
        self._log.say(message)
        sys.stdout.flush()

    def show(self, renderable: RenderableType) -> None:
        self._log.show(renderable)


class _Shown:
    def __init__(self, reporter: FileReporter, line: Task, state: State) -> None:
        self.reporter, self.line, self.state = reporter, line, state
        self.show()

    def advance(self, amount: int) -> None:
        self.line.advance(amount)
        self.state = self.state.model_copy(update={"done": self.state.done + amount})
        if time.monotonic() - self.shown >= SHOWN_SECONDS:
            self.show()

    def note(self, text: str) -> None:
        self.line.note(text)
        self.state = self.state.model_copy(update={"note": text})

    def show(self) -> None:
        self.shown = time.monotonic()
        self.reporter.place.show(self.state)
