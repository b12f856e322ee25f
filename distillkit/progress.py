"""Progress of long jobs: a live bar on a terminal, HTML in a notebook, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from distillkit.text import printable

PLAIN_SECONDS = 10.0


class Task(Protocol):
    def advance(self, amount: int) -> None: ...

    def note(self, text: str) -> None:
        """What matters beside the bar: losses, the last figure, health."""


class Reporter(Protocol):
    """Where jobs report to. Use `task` around a job and `say` for single lines."""

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]: ...

    def say(self, message: str) -> None: ...

    def show(self, renderable: RenderableType) -> None: ...


class Quiet:
    """Reports nothing: other processes than the first, and `--quiet`."""

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        yield _Silent()

    def say(self, message: str) -> None: ...

    def show(self, renderable: RenderableType) -> None: ...


class _Silent:
    def advance(self, amount: int) -> None: ...

    def note(self, text: str) -> None: ...


class _Rate(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        done = f"{task.completed:,.0f}/{task.total:,.0f} {task.fields['unit']}"
        return Text(done + (f"  {task.speed:,.0f}/s" if task.speed else ""), style="progress.data.speed")


class _Bars(Progress):
    """Bars, and what is noted of each below them: beside a bar it would be cut in a narrow window."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if remark := task.fields["remark"]:
                yield Text("\n".join(packed(remark, self.console.width - 1)), style="dim")


def packed(remark: str, width: int) -> list[str]:
    """The items of a remark, which two spaces separate, in lines of at most `width`; no name leaves its value."""
    lines: list[str] = []
    for item in remark.split("  "):
        if lines and len(lines[-1]) + 2 + len(item) <= width:
            lines[-1] += f"  {item}"
        else:
            lines.append(item)
    return lines


class Terminal(Console):
    """Prints text as it is: square brackets and colons in names are no markup, and no name can steer the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


class Live:
    """Bars on a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        title = printable(title)
        if self._progress is not None:
            # A terminal has one live display: a job within a job is one more bar of it.
            bar = self._progress.add_task(title, total=total, completed=done, unit=unit, remark="")
            yield _Bar(self._progress, bar)
            self._progress.remove_task(bar)
            return
        whole = Column(no_wrap=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20 if self.console.width >= 100 else 10, table_column=whole),
            _Rate(table_column=whole.copy()),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=whole.copy()),
        )
        try:
            with _Bars(*columns, console=self.console, speed_estimate_period=60) as self._progress:
                bar = self._progress.add_task(title, total=total, completed=done, unit=unit, remark="")
                yield _Bar(self._progress, bar)
        finally:
            self._progress = None

    def say(self, message: str) -> None:
        # Words stay whole in a narrow window, and a command stays one line, to be copied.
        self.console.print(message, soft_wrap="distillkit " in message)

    def show(self, renderable: RenderableType) -> None:
        self.console.print(renderable)


class _Bar:
    def __init__(self, progress: Progress, bar: object) -> None:
        self.progress, self.bar = progress, bar

    def advance(self, amount: int) -> None:
        self.progress.advance(self.bar, amount)  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        self.progress.update(self.bar, remark=printable(text))  # type: ignore[arg-type]


class Notebook:
    """HTML bars in a notebook's cell, without widgets."""

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        task = _Cell(title, total, unit, done)
        yield task
        task.draw()

    def say(self, message: str) -> None:
        _display(f"<pre>{html.escape(message)}</pre>")

    def show(self, renderable: RenderableType) -> None:
        Terminal(force_jupyter=True).print(renderable)


class _Cell:
    def __init__(self, title: str, total: int, unit: str, done: int) -> None:
        self.title, self.total, self.unit, self.done, self.began = title, total, unit, done, done
        self.started, self.drawn, self.remark = time.monotonic(), 0.0, ""
        self.handle = _display(self._html())

    def advance(self, amount: int) -> None:
        self.done += amount
        if time.monotonic() - self.drawn > 0.5:
            self.draw()

    def note(self, text: str) -> None:
        self.remark = text

    def draw(self) -> None:
        from IPython.display import HTML

        self.drawn = time.monotonic()
        self.handle.update(HTML(self._html()))

    def _html(self) -> str:
        line = _line(self.title, self.done, self.total, self.unit, self.done - self.began, self.started, self.remark)
        return f'<div><progress value="{self.done}" max="{self.total}"></progress> {html.escape(line)}</div>'


def _display(text: str) -> Any:
    """Show HTML in the present cell; returns the handle that updates it."""
    from IPython.display import HTML, display

    show: Any = display
    return show(HTML(text), display_id=True)


def in_notebook() -> bool:
    """Whether this is a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _line(title: str, done: int, total: int, unit: str, made: int, started: float, remark: str) -> str:
    """'training: 512/6,400 images, 300/s, 0:19 left  step 8', with the rate of what this process made."""
    rate = made / max(time.monotonic() - started, 1e-9)
    left = f", {clock((total - done) / rate)} left" if rate and done < total else ""
    return f"{title}: {done:,}/{total:,} {unit}, {rate:,.0f}/s{left}" + (f"  {remark}" if remark else "")


class Plain(Live):
    """One line at most every ten seconds: logs, pipes, dumb terminals."""

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        task = _Lines(self, title, total, unit, done)
        yield task
        task.print_line()

    def say(self, message: str) -> None:
        self.console.print(message, soft_wrap=True)


class _Lines:
    def __init__(self, reporter: Plain, title: str, total: int, unit: str, done: int) -> None:
        self.reporter, self.title, self.unit = reporter, title, unit
        self.total, self.done, self.began = total, done, done
        self.started = self.printed = time.monotonic()
        self.remark = ""

    def advance(self, amount: int) -> None:
        self.done += amount
        # The last line is the task's closing one.
        if self.done < self.total and time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.print_line()

    def note(self, text: str) -> None:
        self.remark = text

    def print_line(self) -> None:
        self.printed = time.monotonic()
        made = self.done - self.began
        self.reporter.say(_line(self.title, self.done, self.total, self.unit, made, self.started, self.remark))


def clock(seconds: float) -> str:
    """75 -> '1:15', 3700 -> '1:01:40'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def reporter_for(*, quiet: bool = False) -> Reporter:
    """Live bars on a terminal, HTML bars in a notebook, plain lines elsewhere, nothing when quiet."""
    if quiet:
        return Quiet()
    if in_notebook():
        return Notebook()
    console = Terminal(stderr=False)
    # A pipe has no width of its own; 100 columns keep tables readable in logs.
    if not console.is_terminal or console.is_dumb_terminal:
        return Plain(Terminal(file=sys.stdout, width=100 if not console.is_terminal else None))
    return Live(console)
