"""`python -m benchmarks.utilisation RUN --peak-tflops 989`: what part of the hardware's operations a training used.

Model FLOPs utilisation (MFU) is operations an image, counted on the network itself, times images/s as logged, over the
peak that the hardware's data sheet gives for the precision (989 TFLOP/s: H100 and H200, dense bf16).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from accelerate import Accelerator

from distillkit.jobs.teacher_config import TeacherRunConfig
from distillkit.jobs.teacher_recipe import teacher_recipe
from distillkit.jobs.trial import try_training
from distillkit.models.store.resolve import load_teacher
from distillkit.runs.validation import read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a finished `distillkit teachers train`")
    parser.add_argument("--peak-tflops", type=float, required=True, help="of all devices together")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    config = TeacherRunConfig.model_validate(read_config(options.run / "config.yaml").values)
    logged = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text().splitlines()]
    speeds = [entry["images_per_second"] for entry in logged if "images_per_second" in entry]
    # The first intervals pay for compilation and for decoding what is kept in memory later.
    speed = statistics.median(speeds[len(speeds) // 4 :])
    teacher = load_teacher(str(options.run / "teacher"))
    short = config.training.model_copy(update={"batch": 2, "batch_per_device": None, "precision": "fp32"})
    trial = try_training(
        teacher_recipe(teacher, config.loss), teacher, short, Accelerator(cpu=not torch.cuda.is_available())
    )
    if trial.flops_per_image is None:
        parser.error("the operations of this training cannot be counted")
    achieved = speed * trial.flops_per_image / 1e12
    report = {
        "teacher": teacher.spec.name,
        "parameters": sum(p.numel() for p in teacher.denoiser.parameters()),
        "gflop_per_image": trial.flops_per_image / 1e9,
        "images_per_second": speed,
        "tflop_per_second": achieved,
        "mfu": achieved / options.peak_tflops,
        "precision": config.training.precision,
        "batch": config.training.batch,
        "environment": json.loads((options.run / "environment.json").read_text()),
    }
    print(json.dumps({key: value for key, value in report.items() if key != "environment"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
