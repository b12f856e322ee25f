"""`python -m benchmarks.live_graphs`: what graphs hold at most in a training step, against both graphs alive at once.

The engine goes back through the student's graph before a learner's is made. Here the same step is also taken with every
backward pass put off to the updates, as where all losses are computed first. Bytes are those that autograd keeps for
backward passes, parameters included, each storage once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from benchmarks.speed.timing import command_line, show, write
from distillkit import load_teacher
from distillkit.engine.optimization import Updater
from distillkit.engine.trainer import Trainer
from distillkit.jobs.step_costs import SavedBytes
from distillkit.registry import registry
from distillkit.testing.training import trainer_of

CASES: Mapping[str, Mapping[str, Any]] = {"dmd": {}, "dmd2": {"updates": 1}, "sid": {}, "ladd": {}}
"""Methods with settings in which every network is due in every step."""


class Late:
    """Puts an updater's backward passes off until its update.

    Args:
        waiting: the passes of all updaters, in order; whoever is updated first runs them.
    """

    def __init__(self, updater: Updater, waiting: list[Callable[[], None]]) -> None:
        self.updater, self.waiting = updater, waiting

    @classmethod
    def take_over(cls, trainer: Trainer) -> None:
        """From now on a trainer keeps all graphs of a step until its updates."""
        waiting: list[Callable[[], None]] = []
        updaters: dict[str, Any] = trainer._updaters
        for role, updater in updaters.items():
            updaters[role] = cls(updater, waiting)

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        self.waiting.append(lambda: self.updater.backward(loss, last=last))

    def apply(self, factor: float) -> Tensor | None:
        while self.waiting:
            self.waiting.pop(0)()
        return self.updater.apply(factor)


def most_bytes(method: str, teacher_name: str, batch: int, *, late: bool) -> int:
    """Bytes that graphs hold at most in a step, the second of a training."""
    trainer = trainer_of(registry().method(method), load_teacher(teacher_name), CASES[method], batch=batch)
    trainer.train_step()
    if late:
        Late.take_over(trainer)
    with SavedBytes().counting() as counted:
        trainer.train_step()
    return counted.most


def main() -> None:
    options = command_line(__doc__, batch=16).parse_args()
    found = {
        method: {kind: most_bytes(method, options.teacher, options.batch, late=kind == "together")
                 for kind in ("one at a time", "together")}
        for method in CASES
    }  # fmt: skip
    figures = {f"{method}, one at a time / together": f["one at a time"] / f["together"] for method, f in found.items()}
    show(f"bytes of graphs on {options.teacher}, batch {options.batch}", figures)
    write(options.json, {"figures": figures, "bytes": found, "teacher": options.teacher, "batch": options.batch})


if __name__ == "__main__":
    main()
