"""`python -m benchmarks.speed.pairs`: opening a large store of noise-image pairs, and reading batches of it.

The store is filled by a teacher that costs nothing, so that the figures are those of the store. Memory is told apart:
the process' own, and pages of the files, which are the system's cache and given back when they are needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit import ClassLabels, Condition, Denoiser, SampleRNG, Teacher, TeacherSpec
from distillkit.data.pair_store import PairStore
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.environment import environment

CPU = torch.device("cpu")
BATCHES = 100


class Free(Denoiser):
    """Half of what it is given, which costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = EDMSchedule()
        self.share = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.share * x


def store_in(folder: Path) -> PairStore:
    """Pairs of CIFAR-10's size with ten classes."""
    spec = TeacherSpec(name="free", shape=(3, 32, 32), solver="euler", solver_steps=1)
    return PairStore(Teacher(Free(), spec, ClassLabels(classes=10)), root=folder)


def memory() -> dict[str, float]:
    """MiB of the process' own memory and of files that it has mapped; zeros where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {"own": 0.0, "files": 0.0}
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


def measured(folder: Path, count: int, batch: int) -> dict[str, Any]:
    """Open the store as a new process does, and read batches of it."""
    store, before, rng = store_in(folder), memory(), SampleRNG(0)
    # What is imported or set up at the first use of anything is not the store's.
    store.noise(range(batch))
    began = time.perf_counter()
    pairs = store_in(folder).open(count, CPU)
    seconds, opened = time.perf_counter() - began, memory()
    reading, noise = [], []
    for step in range(BATCHES):
        began = time.perf_counter()
        pairs.batch(rng, step, range(batch))
        middle = time.perf_counter()
        store.noise(range(batch))
        reading.append(middle - began)
        noise.append(time.perf_counter() - middle)
    after = memory()
    return {
        "open_seconds": seconds,
        "open_mebibytes": {name: opened[name] - before[name] for name in before},
        "batch_milliseconds": statistics.median(reading) * 1e3,
        "of_which_noise_milliseconds": statistics.median(noise) * 1e3,
        f"mebibytes_after_{BATCHES}_batches": {name: after[name] - before[name] for name in before},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="keep the store here; a temporary one by default")
    parser.add_argument("--output", type=Path, help="also write the figures here, as JSON")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.folder, options.count, options.batch)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        store, began = store_in(folder), time.perf_counter()
        missing = len(store.missing(options.count))
        store.make(options.count, CPU, advance=lambda made: None)
        filled = time.perf_counter() - began
        command = [sys.executable, "-m", "benchmarks.speed.pairs", "--measure", "--folder", str(folder)]
        again = [*command, "--count", str(options.count), "--batch", str(options.batch)]
        figures = {"trusted manifest": _run(again)}
        (store.folder / "manifest.json").unlink()
        figures["no manifest: every shard is hashed once"] = _run(again)
        size = sum(path.stat().st_size for path in store.folder.iterdir())
    report = {
        "pairs": options.count, "shape": [3, 32, 32], "batch": options.batch,
        "shards": -(-options.count // store.shard), "bytes": size, "seconds_to_fill": filled if missing else None,
        "figures": figures, "environment": environment(),
    }  # fmt: skip
    print(json.dumps({key: value for key, value in report.items() if key != "environment"}, indent=2))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


def _run(command: list[str]) -> dict[str, Any]:
    """The figures of a process of its own."""
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


if __name__ == "__main__":
    main()
