"""What a training run says and writes as it goes, and the judgement on its health."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from distillkit.contracts.health import Diagnostic, Health
from distillkit.contracts.sampler import Sampler
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.metrics import MetricsFile, judge
from distillkit.engine.trackers import Trackers
from distillkit.errors import DistillkitError
from distillkit.progress import Reporter


@dataclass(frozen=True)
class Evaluation:
    """A figure of the student during the training; less is better.

    Args:
        label: of the figure, for people.
        error: standard error of the value; None where it is not known.
        samples: that it was measured on.
        nfe: network evaluations of one of them, which some methods change on the way; None where it is not known.
    """

    label: str
    value: float
    error: float | None
    samples: int
    nfe: float | None = None


@dataclass(frozen=True)
class Preview:
    """What was drawn of the moving average.

    Args:
        path: of the picture.
        values: seen of the samples in it, by the names of diagnostics.
    """

    path: Path | None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Selection:
    """Which checkpoint had the best figure, and how many were looked at: the best of many is luckier than one.

    Args:
        evaluated: figures so far, of students that are sampled alike.
    """

    best_step: int | None = None
    best_value: float | None = None
    evaluated: int = 0

    def take(self, step: int, value: float) -> bool:
        """Note a figure; whether it is the best so far."""
        self.evaluated += 1
        if not math.isfinite(value) or (self.best_value is not None and value >= self.best_value):
            return False
        self.best_step, self.best_value = step, value
        return True


@dataclass
class Outputs:
    """Where a run writes, and what it calls at intervals with the moving average of what is trained.

    Args:
        main: whether this process writes; the others only call.
        preview: (the average, step) -> what it drew, where it drew something.
        preview_diagnostics: of what is seen in previews; judged when one is drawn.
        evaluate: the average -> its figure, the same on all processes; None where nothing is measured.
        described: what is trained, as plain data that every checkpoint holds.
        describe_student: (sampler, images seen) -> the student's description, kept in every checkpoint, so that its
            moving average alone can be loaded as a student.
    """

    checkpoints: Checkpoints
    metrics: MetricsFile
    trackers: Trackers
    reporter: Reporter
    main: bool = True
    preview: Callable[[Any, int], Preview | None] = lambda average, step: None
    preview_diagnostics: Sequence[Diagnostic] = ()
    evaluate: Callable[[Any], Evaluation | None] = lambda average: None
    described: Mapping[str, Any] = field(default_factory=dict)
    describe_student: Callable[[Sampler, int], Mapping[str, Any]] | None = None
    health: dict[str, Health] = field(default_factory=dict)
    figure: Evaluation | None = None
    explained: set[tuple[str, Health]] = field(default_factory=set, init=False)
    """What was said of diagnostics: one that goes in and out of its range is explained once."""

    def record(
        self, step: int, images: int, values: Mapping[str, float], cost: float, diagnostics: Sequence[Diagnostic]
    ) -> None:
        """Judge an interval's means, write them, and refuse to go on with a loss that is not finite.

        Raises:
            DistillkitError: naming the loss term.
        """
        if broken := [name for name, value in values.items() if not math.isfinite(value)]:
            cause = next((name for name in broken if name.startswith("loss/")), broken[0])
            others = ", ".join(sorted(set(broken) - {cause}))
            raise DistillkitError(
                f"{cause} is not finite near step {step}{f' (also: {others})' if others else ''}. "
                f"Stopped; the last good checkpoint in {self.checkpoints.folder} is kept. "
                "Try a lower --lr, --precision fp32 or bf16, or a smaller --clip-grad-norm, then start anew."
            )
        self._judge(step, values, diagnostics)
        if self.main:
            health = {name: str(state) for name, state in self.health.items()}
            self.metrics.append({"step": step, "images": images, **values, "cost": cost, "health": health})
        self.trackers.log(values, images)

    def score(self, step: int, images: int, average: nn.Module, cost: float) -> Evaluation | None:
        """Evaluate the average and write the figure beside what it cost."""
        figure = self.evaluate(average)
        if figure is None:
            return None
        self.figure = figure
        if self.main:
            self.metrics.append({"step": step, "images": images, "cost": cost, "evaluation": asdict(figure)})
        self.trackers.log({figure.label: figure.value}, images)
        return figure

    def show(self, step: int, images: int, average: nn.Module) -> None:
        """Draw what the average makes, for people here and at the tracker, and judge what is seen of it."""
        made = self.preview(average, step)
        self.trackers.show("samples", made.path if made else None, images)
        known = {diagnostic.name for diagnostic in self.preview_diagnostics}
        values = {name: value for name, value in (made.values if made else {}).items() if name in known}
        if not values:
            return
        self._judge(step, values, self.preview_diagnostics)
        if self.main:
            name = made.path.name if made and made.path else None
            self.metrics.append({"step": step, "images": images, "preview": name, **values})
        self.trackers.log(values, images)

    def remark(self, step: int, last: Mapping[str, float]) -> str:
        """What is shown beside the progress bar: step, losses, the last figure, health."""
        shown = {name.removeprefix("loss/"): value for name, value in last.items() if name.startswith("loss/")}
        if self.figure:
            shown[self.figure.label] = self.figure.value
        if skipped := last.get("skipped_steps"):
            shown["updates skipped for overflow"] = skipped
        worst = [f"{name}: {state}" for name, state in self.health.items() if state is not Health.OK]
        parts = [f"{name} {value:.4g}" for name, value in shown.items()]
        return f"step {step:,}  " + "  ".join(parts + (worst or ["healthy"] * bool(self.health)))

    def _judge(self, step: int, values: Mapping[str, float], diagnostics: Sequence[Diagnostic]) -> None:
        """Judge the diagnostics, and explain each when it first leaves its healthy range, and when it first collapses.

        The beginning is not judged: the student is still the teacher's copy there, and so are score estimators, so that
        what compares the two is zero in every run.
        """
        if step <= 1:
            return
        found = judge(values, diagnostics)
        # What was not logged in this interval keeps its last judgement.
        self.health = {**self.health, **found}
        for diagnostic in diagnostics:
            now = found.get(diagnostic.name, Health.OK)
            if now is not Health.OK and (diagnostic.name, now) not in self.explained:
                self.explained.add((diagnostic.name, now))
                low, high = diagnostic.ok
                self.reporter.say(
                    f"step {step:,}: {diagnostic.name} is {values[diagnostic.name]:.4g}, {now} "
                    f"(healthy: {low:g} to {high:g}): {diagnostic.meaning}"
                )
