"""`python -m benchmarks.speed.evaluation`: our evaluation against clean-fid's, as ratios in one run.

The same images, the same extractor, the same machine, in turn. Memory is measured in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from distillkit.data.config import DataConfig
from distillkit.data.reader import ImageReader, pixels_in_order
from distillkit.environment import environment
from distillkit.evaluation.extractor import ModuleExtractor
from distillkit.evaluation.features import Kept, moments_of
from distillkit.evaluation.frechet import distance_to, matrix_sqrt
from distillkit.evaluation.pipeline import extract

MEASURE = """
def peak(key="VmHWM"):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

def forget():
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here (Linux)
    return peak("VmRSS")
"""

OURS = (
    MEASURE
    + """
import sys, tempfile, pathlib, torch
from distillkit.evaluation.features import FeatureFile, moments_of
from distillkit.evaluation.frechet import distance_to, matrix_sqrt
n, d = map(int, sys.argv[1:])
reference = torch.eye(d, dtype=torch.float64)
torch.linalg.eigvalsh(torch.eye(8, dtype=torch.float64))
before = forget()
with tempfile.TemporaryDirectory() as folder:
    features = FeatureFile(pathlib.Path(folder) / "f", d)
    for k in range(0, n, 500):
        features.add(torch.randn(500, d, generator=torch.Generator().manual_seed(k)))
    moments = moments_of(features, d)
    estimator = peak()
    distance_to(moments.mean, moments.covariance, torch.zeros(d, dtype=torch.float64), matrix_sqrt(reference))
print((estimator - before) / 1024, (peak() - before) / 1024)
"""
)

THEIRS = (
    MEASURE
    + """
import sys, warnings, numpy as np, torch
warnings.simplefilter("ignore")
from cleanfid.fid import frechet_distance
n, d = map(int, sys.argv[1:])
reference = np.eye(d)
before = forget()
batches = [torch.randn(500, d, generator=torch.Generator().manual_seed(k)).numpy() for k in range(0, n, 500)]
features = np.concatenate(batches)
mu, sigma = np.mean(features, axis=0), np.cov(features, rowvar=False)
estimator = peak()
frechet_distance(mu, sigma, np.zeros(d), reference)
print((estimator - before) / 1024, (peak() - before) / 1024)
"""
)


def network() -> torch.nn.Module:
    """A small extractor of 64 features that takes any resolution."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 32, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3, stride=2),
              torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]  # fmt: skip
    return torch.nn.Sequential(*layers).eval()


def ours(folder: Path, extractor: ModuleExtractor, mean: torch.Tensor, root: torch.Tensor) -> float:
    reader = ImageReader(DataConfig(path=str(folder)))
    with tempfile.TemporaryDirectory() as work:
        kept = Kept(Path(work), 64, 64)
        batches = [range(k, min(k + 64, len(reader))) for k in range(0, len(reader), 64)]
        for _ in extract(extractor, pixels_in_order(reader, batches), kept, lambda n: None):
            pass
        moments = moments_of(kept.rows, 64)
        return distance_to(moments.mean, moments.covariance, mean, root).value


def theirs(folder: Path, extractor: torch.nn.Module, mean: np.ndarray, covariance: np.ndarray, mode: str) -> float:
    from cleanfid.fid import frechet_distance, get_folder_features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        features = get_folder_features(
            str(folder),
            model=extractor,
            num_workers=0,
            batch_size=64,
            device=torch.device("cpu"),
            mode=mode,
            verbose=False,
        )
        return float(frechet_distance(np.mean(features, axis=0), np.cov(features, rowvar=False), mean, covariance))


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def memory(program: str, n: int, d: int) -> list[float]:
    """MiB added by features and moments, and by all with the distance."""
    done = subprocess.run([sys.executable, "-c", program, str(n), str(d)], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        rng = np.random.default_rng(0)
        for index in range(options.images):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index:05d}.png")
        net = network()
        extractor = ModuleExtractor(net, "small/pool", (3, 32, 32))
        mean, covariance = torch.zeros(64, dtype=torch.float64), torch.eye(64, dtype=torch.float64)
        root = matrix_sqrt(covariance)
        values: dict[str, float] = {}
        runs = {
            "ours": lambda: values.update(ours=ours(folder, extractor, mean, root)),
            "native": lambda: values.update(
                native=theirs(folder, net, mean.numpy(), covariance.numpy(), "legacy_tensorflow")
            ),
            "clean": lambda: values.update(clean=theirs(folder, net, mean.numpy(), covariance.numpy(), "clean")),
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        runs["ours"](), runs["native"]()
        for turn in range(options.rounds):
            for name, run in runs.items():
                if name != "clean" or turn == 0:  # minutes each
                    taken[name].append(seconds(run))
    assert abs(values["ours"] - values["native"]) < 1e-4 * values["native"], values
    for name in ("native", "clean"):
        ratio = statistics.median(t / o for t, o in zip(taken[name], taken["ours"], strict=False))
        figures[f"clean-fid ({name} resolution) / ours, {options.images:,} images of 32x32, time"] = ratio

    d = 2048
    a, b = (torch.cov(torch.randn(d, 3 * d, dtype=torch.float64)) for _ in range(2))
    root = matrix_sqrt(b)

    def by_sqrtm() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scipy.linalg.sqrtm(a.numpy() @ b.numpy())

    zero = torch.zeros(d, dtype=torch.float64)
    known = [seconds(lambda: distance_to(zero, a, zero, root)) for _ in range(options.rounds)]
    whole = [seconds(lambda: distance_to(zero, a, zero, matrix_sqrt(b))) for _ in range(options.rounds)]
    sqrtm = [seconds(by_sqrtm) for _ in range(options.rounds)]
    figures["scipy sqrtm / our distance, d = 2,048, reference's root known, time"] = statistics.median(
        s / k for s, k in zip(sqrtm, known, strict=True)
    )
    figures["scipy sqrtm / our distance, d = 2,048, reference's root taken too, time"] = statistics.median(
        s / w for s, w in zip(sqrtm, whole, strict=True)
    )
    mine, other = memory(OURS, 50_000, d), memory(THEIRS, 50_000, d)
    figures["our added memory, 50,000 x 2,048, features and moments, MiB"] = mine[0]
    figures["clean-fid's, MiB"] = other[0]
    figures["clean-fid / ours, features and moments, memory"] = other[0] / mine[0]
    figures["our added memory with the distance, MiB"] = mine[1]
    figures["clean-fid's with the distance, MiB"] = other[1]

    table = Table("figure", "value", title=f"evaluation against clean-fid, {torch.get_num_threads()} thread(s)")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.2f}")
    Console(width=110).print(table)
    if options.json:
        report = {"figures": figures, "seconds": taken, "environment": environment()}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
