"""`python -m benchmarks.plans`: the time that `--dry-run` gives over the time that a training takes, for a few methods.

Only the training counts: evaluations, pictures and noise-image pairs are planned apart. The real time is that of the
logging intervals; the first, in which libraries load and kernels are chosen, is taken to be as long as the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import distillkit
from distillkit.environment import environment
from distillkit.jobs.planned import planned
from distillkit.jobs.trial import try_training

CASES = (("dmd", "digits"), ("kd", "digits"), ("consistency", "digits"), ("dmd", "mixture"), ("sid", "mixture"))
BATCHES = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [ratio(method, teacher, Path(folder)) for method, teacher in CASES]
    report = {"environment": environment(), "planned_over_real": rows}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def ratio(method: str, teacher: str, folder: Path) -> dict[str, Any]:
    """Seconds of a short training as planned and as it was."""
    began = time.monotonic()
    with planned(method, teacher, quiet=True) as plan:
        job = plan.job()
        job.prepare()
        training = job.config.training
        images = training.batch * BATCHES
        trial = try_training(job.recipe, job.teacher, training, plan.context.accelerator)
    took = time.monotonic() - began
    expected = images * trial.seconds_per_image
    run = distillkit.distil(
        method, teacher, duration=images, log_every=10 * training.batch, protocol="none", quiet=True,
        output_dir=folder / f"{method}-{teacher}",
    )  # fmt: skip
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [entry["images_per_second"] for entry in map(json.loads, lines) if "images_per_second" in entry]
    real = images / statistics.median(speeds[1:])
    row = {
        "method": method, "teacher": teacher, "images": images, "planned_seconds": round(expected, 2),
        "real_seconds": round(real, 2), "ratio": round(expected / real, 2), "plan_took_seconds": round(took, 1),
    }  # fmt: skip
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
