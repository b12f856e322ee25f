"""`python -m benchmarks.speed.streams`: batches of a stream of tar files against the same drawn at random in place.

All figures are ratios of things done in turn in one run: seconds of a batch, and reads and bytes for each sample. The
files lie on the local disk; a delay for each read stands for a remote filesystem.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distillkit import SampleRNG
from distillkit.data.files import ImageFiles, open_images
from distillkit.data.remote import RemoteFile
from distillkit.data.stream_files import StreamedFiles
from distillkit.environment import environment


class Reads:
    """Counts reads of ranges, each of which takes so long."""

    def __init__(self, delay: float) -> None:
        self.delay, self.count, self.bytes = delay, 0, 0
        self._real = RemoteFile.read

    def install(self) -> None:
        reads, real = self, self._real

        def read(file: RemoteFile, start: int, end: int) -> bytes:
            reads.count += 1
            reads.bytes += end - start
            time.sleep(reads.delay)
            return real(file, start, end)

        RemoteFile.read = read  # type: ignore[method-assign]


def packed(folder: Path, files: int, samples: int, size: int) -> int:
    """Tar files of images of noise with captions; bytes of a sample, about."""
    noise, total = np.random.default_rng(0), 0
    for number in range(files):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as archive:
            for k in range(samples):
                out = io.BytesIO()
                Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(out, "PNG")
                for ending, data in (("png", out.getvalue()), ("txt", b"noise")):
                    info = tarfile.TarInfo(f"{k:06d}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        total += (folder / f"{number:03d}.tar").stat().st_size
    return total // (files * samples)


def timed(read: Callable[[int], None], first: int, steps: int) -> float:
    began = time.perf_counter()
    for step in range(first, first + steps):
        read(step)
    return (time.perf_counter() - began) / steps


def measured(folder: Path, batch: int, steps: int, rounds: int, delay: float) -> dict[str, Any]:
    place: ImageFiles = open_images(str(folder))
    stream = open_images(f"{folder}/*.tar")
    assert isinstance(stream, StreamedFiles)
    order, rng, reads = stream.arrange(batch), SampleRNG(0), Reads(delay)
    reads.install()

    def in_order(step: int) -> None:
        chosen = order.numbers(rng, step, range(batch)).tolist()
        stream.ahead(chosen)
        stream.ahead(order.numbers(rng, step + 1, range(batch)).tolist())
        for number in chosen:
            stream.read(number)

    def at_random(step: int) -> None:
        for number in rng.integers("images", step, range(batch), len(place)).tolist():
            time.sleep(delay)
            place.read(number)

    in_order(0)
    reads.count = reads.bytes = 0
    seconds: dict[str, list[float]] = {"stream": [], "at random": []}
    for turn in range(rounds):
        seconds["stream"].append(timed(in_order, 1 + turn * steps, steps))
        seconds["at random"].append(timed(at_random, turn * steps, steps))
    drawn = rounds * steps * batch
    ratios = [s / r for s, r in zip(seconds["stream"], seconds["at random"], strict=True)]
    return {
        "delay of a read, ms": delay * 1e3,
        "stream / at random, seconds of a batch": statistics.median(ratios),
        "reads of the stream for each sample": reads.count / drawn,
        "samples of a block": len(stream) / len(stream.blocks),
        "MiB held, of 1024 allowed": stream.held_bytes / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--delays", type=float, nargs="*", default=[0.0, 0.01], help="seconds of a read")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        each = packed(Path(temporary), options.files, options.samples, options.size)
        figures = [
            measured(Path(temporary), options.batch, options.steps, options.rounds, delay) for delay in options.delays
        ]
    report = {
        "samples": options.files * options.samples, "bytes of a sample": each, "batch": options.batch,
        "figures": figures, "environment": environment(),
    }  # fmt: skip
    print(json.dumps({key: value for key, value in report.items() if key != "environment"}, indent=2))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
