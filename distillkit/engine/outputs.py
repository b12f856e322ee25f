"""What a training run says and writes as it goes, and the judgement on its health."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from distillkit.contracts.health import Diagnostic, Health
from distillkit.contracts.student import StudentGenerator
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.metrics import MetricsFile, Trackers, judge
from distillkit.errors import DistillkitError
from distillkit.progress import Reporter


@dataclass
class Outputs:
    """Where a run writes, and what it calls at intervals with the moving-average student.

    Args:
        main: whether this process writes; the others only call.
        preview: (student, step) -> None, writes pictures.
        evaluate: student -> figures by name.
    """

    checkpoints: Checkpoints
    metrics: MetricsFile
    trackers: Trackers
    reporter: Reporter
    main: bool = True
    preview: Callable[[StudentGenerator, int], None] = lambda student, step: None
    evaluate: Callable[[StudentGenerator], Mapping[str, float]] = field(default=lambda student: {})
    health: dict[str, Health] = field(default_factory=dict)

    def record(
        self, step: int, images: int, values: Mapping[str, float], cost: int, diagnostics: Sequence[Diagnostic]
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

    def score(self, step: int, images: int, student: StudentGenerator, cost: int) -> dict[str, float]:
        """Evaluate the student and write the figures beside what they cost."""
        figures = dict(self.evaluate(student))
        if figures and self.main:
            self.metrics.append({"step": step, "images": images, **figures, "cost": cost})
        if figures:
            self.trackers.log(figures, images)
        return figures

    def remark(self, step: int, last: Mapping[str, float]) -> str:
        """What stands beside the progress bar: step, losses, the last figure, health."""
        shown = [f"{k.removeprefix('loss/')} {v:.4g}" for k, v in last.items() if k.startswith("loss/") or "[" in k]
        worst = [f"{name}: {state}" for name, state in self.health.items() if state is not Health.OK]
        return f"step {step:,}  " + "  ".join(shown + (worst or ["healthy"] * bool(self.health)))

    def _judge(self, step: int, values: Mapping[str, float], diagnostics: Sequence[Diagnostic]) -> None:
        """Judge the diagnostics, and explain each that has left its healthy range, once."""
        # What was not logged in this interval keeps its last judgement.
        before, self.health = self.health, {**self.health, **judge(values, diagnostics)}
        for diagnostic in diagnostics:
            now = self.health.get(diagnostic.name, Health.OK)
            if now not in (Health.OK, before.get(diagnostic.name, Health.OK)):
                low, high = diagnostic.ok
                self.reporter.say(
                    f"step {step:,}: {diagnostic.name} is {values[diagnostic.name]:.4g}, {now} "
                    f"(healthy: {low:g} to {high:g}): {diagnostic.meaning}"
                )
