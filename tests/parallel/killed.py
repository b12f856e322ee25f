"""A run of several processes, one of which is killed at a change of the run's folder. A program of tests: the teacher,
folders of runs to begin or resume, and for the last of them who is killed at which change."""

import os
import signal
import sys
from pathlib import Path

from distillkit import DistillkitError, distil
from tests.killing import CHANGES, WRITES

teacher, folders, (rank, event, part, nth) = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
seen = []


def before(name, arguments):
    """Nothing is cleaned up behind a process that ends here."""
    changes = name in CHANGES or (name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
    if changes and name == event and part in str(arguments[0]) and folders[-1] in str(arguments[0]):
        seen.append(arguments[0])
        if len(seen) == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)


if os.environ["RANK"] == rank:
    sys.addaudithook(before)
for folder in folders:
    begun = (Path(folder) / "config.yaml").exists()
    options = {} if begun else {
        "teacher": teacher, "output_dir": folder, "parallel": "shard", "distance": "l2", "pairs_count": 32,
        "duration": 96, "batch": 16, "log_every": 16, "lr": 1e-3, "checkpoint_every": 32, "sample_every": 48,
        "evaluate_every": 48, "evaluation_samples": 30, "evaluate_samples": 30,
    }  # fmt: skip
    try:
        distil("dmd", quiet=True, resume=folder if begun else None, timeout=120, device="cpu", **options)
    except DistillkitError as error:
        sys.exit(f"distillkit: {error}")
sys.stdout.write("ended\n")
