"""`python -m benchmarks.memory`: what the options for less memory save, in bytes of DMD2's training.

Bytes of weights, of moments and of what graphs hold at most in a step, by option over those without any; and for
gradient checkpointing what it costs, in seconds of the processor, steps in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.speed.timing import command_line, show, write
from distillkit import load_teacher
from distillkit.engine.trainer import Trainer
from distillkit.jobs.step_costs import SavedBytes
from distillkit.jobs.teacher_weights import lower
from distillkit.registry import registry
from distillkit.testing.training import trainer_of
from distillkit.weights import weight_bytes

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "none": {}, "--gradient-checkpointing": {"gradient_checkpointing": True},
    "--batch-per-device, half": {}, "--optimizer adamw8bit": {"optimizer": "adamw8bit"},
    "--teacher-dtype bf16": {},
}  # fmt: skip
ROUNDS = 5


def trainer(option: str, teacher_name: str, batch: int) -> Trainer:
    """A training with an option, its first step taken."""
    changes = dict(OPTIONS[option])
    if option.startswith("--batch"):
        changes["batch_per_device"] = batch // 2
    made = trainer_of(registry().method("dmd2"), load_teacher(teacher_name), {"updates": 1}, batch=batch, **changes)
    if option.startswith("--teacher-dtype"):
        lower(made.teacher, option.rpartition(" ")[2], print)
    made.train_step()
    return made


def held(made: Trainer) -> dict[str, int]:
    """Bytes, by what holds them."""
    with SavedBytes().counting() as counted:
        made.train_step()
    return {
        "graphs": counted.most,
        "moments": made.networks.moment_bytes(made.config),
        "teacher": weight_bytes(made.teacher.denoiser),
    }


def slower(made: Mapping[str, Trainer]) -> float:
    """Seconds of a step of the second over those of the first, in turn."""
    rounds = []
    for _ in range(ROUNDS):
        seconds = []
        for one in made.values():
            began = time.process_time()
            one.train_step()
            seconds.append(time.process_time() - began)
        rounds.append(seconds[1] / seconds[0])
    return statistics.median(rounds)


def main() -> None:
    options = command_line(__doc__, batch=16).parse_args()
    # torchao compiles the update of every shape, which changes no byte.
    with torch.compiler.set_stance("force_eager"):
        made = {option: trainer(option, options.teacher, options.batch) for option in OPTIONS}
        found = {option: held(one) for option, one in made.items()}
        plain = found["none"]
        figures = {
            f"{option}: {what}": size / plain[what]
            for option, sizes in found.items()
            for what, size in sizes.items()
            if size != plain[what]
        }
        timed = {option: made[option] for option in ("none", "--gradient-checkpointing")}
        figures["--gradient-checkpointing: time of a step"] = slower(timed)
    show(f"dmd2 on {options.teacher}, batch {options.batch}", figures)
    write(options.json, {"figures": figures, "bytes": found, "teacher": options.teacher, "batch": options.batch})


if __name__ == "__main__":
    main()
