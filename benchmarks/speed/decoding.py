"""`python -m benchmarks.speed.decoding IMAGES`: images/s from a zip file or folder to float32 batches."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from distillkit import SampleRNG
from distillkit.data.config import DataConfig
from distillkit.data.stream import ImageStream, open_stream
from distillkit.environment import environment

ROUNDS = 3


def rate(stream: ImageStream, batch: int, batches: int, first: int) -> float:
    """Images/s over so many steps."""
    rng = SampleRNG(0)
    began = time.perf_counter()
    for step in range(first, first + batches):
        stream.batch(rng, step, range(batch))
    return batch * batches / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="zip file, folder, parquet file or hf:ORG/NAME")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    streams = {
        f"decoded, {workers} workers": open_stream(DataConfig(path=options.images, workers=workers), None, device)
        for workers in (0, 1, 2, 4)
    }
    for stream in streams.values():
        stream._kept = None
    kept = open_stream(DataConfig(path=options.images), None, device)
    for number in range(len(kept)):
        kept._image(number)
    streams["kept in memory, 1 worker"] = kept
    best = dict.fromkeys(streams, 0.0)
    for turn in range(ROUNDS):
        for name, stream in streams.items():
            best[name] = max(best[name], rate(stream, options.batch, options.batches, turn * options.batches))
    table = Table("from file to batch", "images/s", title=f"{len(kept):,} images {kept.shape}, batch {options.batch}")
    for name, value in best.items():
        table.add_row(name, f"{value:,.0f}")
    Console(width=100).print(table)
    if options.json:
        report = {"images_per_second": best, "shape": kept.shape, "batch": options.batch, "environment": environment()}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
