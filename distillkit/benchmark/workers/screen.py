"""The progress of all workers in one place: a bar for each, and one for the whole benchmark with the time left."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from distillkit.benchmark.suite import Suite
from distillkit.benchmark.workers.messages import State
from distillkit.progress import Reporter, Task

TRAINING = "training"
"""Title of the engine's own progress."""


@dataclass
class _Row:
    """A bar of a worker: of what, how far, and what ends it."""

    title: str
    done: int
    note: str
    bar: Task
    stack: ExitStack


class Screen:
    """Shows what workers report.

    Args:
        suite: whose budget is what a training costs.
    """

    def __init__(self, reporter: Reporter, suite: Suite) -> None:
        self.reporter, self.budget = reporter, suite.budget or 0
        self._stack, self._rows = ExitStack(), dict[int, _Row]()
        self._whole: Task | None = None
        self._spent = dict[str, int]()
        self._shown = 0

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._rows):
            self.end(number)
        self._stack.close()

    def begin(self, trainings: int) -> None:
        """All trainings are known: the whole is counted in forward-equivalents, of which each gets the same."""
        if not trainings:
            return
        total = trainings * self.budget
        self._whole = self._stack.enter_context(
            self.reporter.task(f"all {trainings} trainings", total, "forward-equivalents")
        )

    def show(self, worker: int, name: str, state: State, training: bool) -> None:
        """What a worker does now."""
        title = f"{name}: {state.title}" if state.title else name
        row = self._rows.get(worker)
        if row is not None and row.title != title:
            self.end(worker)
            row = None
        if state.total and row is None:
            stack = ExitStack()
            bar = stack.enter_context(self.reporter.task(title, state.total, state.unit, state.done))
            row = self._rows[worker] = _Row(title, state.done, "", bar, stack)
        if row is not None:
            if state.done > row.done:
                row.bar.advance(state.done - row.done)
                row.done = state.done
            if state.note != row.note:
                row.bar.note(state.note)
                row.note = state.note
        if training and state.title == TRAINING and state.total:
            self._spend(name, int(self.budget * min(1.0, state.done / state.total)))

    def end(self, worker: int) -> None:
        """A worker does nothing now."""
        if row := self._rows.pop(worker, None):
            row.stack.close()

    def finished(self, name: str) -> None:
        """A training is over, whatever became of it."""
        self._spend(name, self.budget)

    def _spend(self, name: str, spent: int) -> None:
        self._spent[name] = max(spent, self._spent.get(name, 0))
        whole = sum(self._spent.values())
        if self._whole is not None and whole > self._shown:
            self._whole.advance(whole - self._shown)
            self._shown = whole
