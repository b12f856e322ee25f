"""`python -m benchmarks.speed`: the engine against a bare loop, against its floor, and one step against the teacher.

Machines are shared and noisy, so every figure is a ratio of two things timed in turn within one run (medians over
rounds). Nothing here is a test.
"""

from __future__ import annotations

import torch

from benchmarks.speed.bare_loop import KL_WEIGHT, BareLoop
from benchmarks.speed.timing import Bench, ratio
from distillkit import Pairs, SourceJob, StudentGenerator
from distillkit.data.pairs import PairsConfig, PairSource
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.evaluation.generator import student_generator, teacher_generator
from distillkit.evaluation.record import Subject
from distillkit.jobs.timing import timed
from distillkit_dmd.method import DMD, DMDConfig

PAIRS = 256


def main() -> None:
    bench = Bench.from_command_line(__doc__)
    teacher, device, batch = bench.teacher, bench.device, bench.batch
    opened = PairSource(teacher, PairsConfig(count=PAIRS)).open(SourceJob(device=device))
    settings = DMDConfig(distance="l2", kl_weight=KL_WEIGHT, regression_weight=1.0)
    config = TrainingConfig(batch=batch, duration="1B", lr=1e-5)
    trainer = Trainer(
        DMD().recipe(teacher, settings), teacher, config, accelerator=bench.accelerator, seed=0, sources={Pairs: opened}
    )
    pairs = opened.select(range(PAIRS))
    joint = BareLoop(teacher, pairs, batch, device)
    separate = BareLoop(teacher, pairs, batch, device, joint=False)
    student = StudentGenerator.from_teacher(teacher).to(device)
    noise, condition, t = joint.noise(), joint.condition(), joint.level()

    def forward() -> None:
        with torch.no_grad():
            teacher.denoiser(noise, t, condition)

    def train_pass() -> None:
        student.denoiser(noise, t, condition).square().mean().backward()

    seconds = bench.in_turn(
        {
            "engine": trainer.train_step, "bare": joint.step, "separate": separate.step,
            "forward": forward, "train": train_pass,
        }
    )  # fmt: skip
    floor = [2 * f + 3 * t for f, t in zip(seconds["forward"], seconds["train"], strict=True)]
    subject = Subject(kind="student", name="one step")
    fast = timed(student_generator(student.eval(), teacher.conditioner, teacher.codec, subject), device)[1]
    slow = timed(teacher_generator(teacher), device)[1]
    figures = {
        "engine / bare loop of the same operations": ratio(seconds["engine"], seconds["bare"]),
        "engine / floor (2 forward and 3 forward-and-backward passes, timed alone)": ratio(seconds["engine"], floor),
        "engine / 11 forward passes (the count of forward-equivalents)": ratio(
            seconds["engine"], [11 * f for f in seconds["forward"]]
        ),
        "student passes apart / in one batch (bare loop)": ratio(seconds["separate"], seconds["bare"]),
    }
    figures[f"one-step student / teacher with {teacher.spec.solver_steps} steps, samples per second"] = fast / slow
    bench.report("DMD", figures, seconds)


if __name__ == "__main__":
    main()
