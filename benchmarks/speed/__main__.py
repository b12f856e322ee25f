"""`python -m benchmarks.speed`: the engine against a bare loop, against its floor, and one step against the teacher.

Machines are shared and noisy, so every figure is a ratio of two things timed in turn within one run (medians over
rounds). Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from benchmarks.speed.bare_loop import BareLoop
from distillkit import Condition, StudentGenerator, load_teacher
from distillkit.data.pairs import PairStore
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.runs.folder import environment
from distillkit.jobs.scores import images_per_second, student_pixels, teacher_pixels
from distillkit_dmd.method import DMD, DMDConfig


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", default="digits")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device = accelerator.device
    teacher = load_teacher(options.teacher).to(device)
    store = PairStore(teacher, steps=teacher.spec.solver_steps)
    store.make(256, device, advance=lambda made: None)
    pairs = store.open(256, device)
    settings = DMDConfig(distance="l2", kl_weight=0.25, regression_weight=1.0)
    config = TrainingConfig(batch=options.batch, duration="1B", lr=1e-5)
    trainer = Trainer(DMD().recipe(teacher, settings), teacher, config, accelerator, seed=0, pairs=pairs)
    joint, separate = BareLoop(teacher, pairs, options.batch), BareLoop(teacher, pairs, options.batch, joint=False)
    student = StudentGenerator.from_teacher(teacher).to(device)
    noise = torch.randn(options.batch, *teacher.spec.shape, device=device)
    sigma = torch.ones(options.batch, device=device)
    labels = torch.zeros(options.batch, dtype=torch.int64, device=device)
    condition = Condition(labels=labels) if teacher.spec.num_classes else Condition()

    def forward() -> None:
        with torch.no_grad():
            teacher.denoiser(noise, sigma, condition)

    def train_pass() -> None:
        student.denoiser(noise, sigma, condition).square().mean().backward()

    seconds = in_turn(
        {
            "engine": trainer.train_step, "bare": joint.step, "separate": separate.step,
            "forward": forward, "train": train_pass,
        },
        options.rounds, options.repeats,
    )  # fmt: skip
    median = {name: statistics.median(values) for name, values in seconds.items()}
    floor = [2 * f + 3 * t for f, t in zip(seconds["forward"], seconds["train"], strict=True)]
    slow = images_per_second(teacher_pixels(teacher, teacher.spec.solver_steps), teacher.spec, device)
    fast = images_per_second(student_pixels(student, teacher), teacher.spec, device, 2048)
    figures = {
        "engine / bare loop of the same operations": ratio(seconds["engine"], seconds["bare"]),
        "engine / floor (2 forward and 3 forward-and-backward passes, timed alone)": ratio(seconds["engine"], floor),
        "engine / 11 forward passes (the count of forward-equivalents)": ratio(
            seconds["engine"], [11 * f for f in seconds["forward"]]
        ),
        "student passes apart / in one batch (bare loop)": ratio(seconds["separate"], seconds["bare"]),
        f"one-step student / teacher with {teacher.spec.solver_steps} Heun steps, images per second": fast / slow,
    }
    table = Table("figure", "ratio", title=f"DMD on {teacher.spec.name}, batch {options.batch}, {device}")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    Console(width=110).print(table)
    print({name: f"{value * 1e3:.1f} ms" for name, value in median.items()})
    if options.json:
        report = {"figures": figures, "milliseconds": {k: v * 1e3 for k, v in median.items()},
                  "batch": options.batch, "teacher": teacher.spec.name, "environment": environment()}  # fmt: skip
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
