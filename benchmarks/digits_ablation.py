"""`python -m benchmarks.digits_ablation FOLDER`: DMD on the embedded teacher, whole and with either term off.

All three spend the same number of forward-equivalents (pairs included): a variant that is cheaper per image trains
longer. Runs that are finished are kept, so the command may be interrupted and given again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distillkit.runs.config import resolve
from distillkit_dmd.method import DMD

# Forward-equivalents per image: student 3 (samples) and 3 (pairs), teacher 1, fake score 1 + 3.
VARIANTS = {
    "full": ([], 11),
    "without KL": (["--kl-weight", "0"], 3),
    "without regression": (["--regression-weight", "0"], 8),
}


def duration(variant: str) -> int:
    """Images that cost what the default run costs."""
    config, _ = resolve(DMD)
    pairs = config.pairs.count * 35
    budget = pairs + 11 * config.training.duration
    own_pairs = 0 if variant == "without regression" else pairs
    return round((budget - own_pairs) / VARIANTS[variant][1])


def run(folder: Path, variant: str, seed: int) -> dict[str, Any]:
    """One run, or the record of it if it is there."""
    where = folder / f"{variant.replace(' ', '-')}-seed{seed}"
    if not (where / "record.json").is_file():
        command = [sys.executable, "-m", "distillkit", "run", "dmd", "--quiet"]
        if where.exists():
            command += ["--resume", str(where)]
        else:
            command += ["--seed", str(seed), "--duration", str(duration(variant)), "--output-dir", str(where)]
            command += VARIANTS[variant][0]
        subprocess.run(command, check=True)
    return dict(json.loads((where / "record.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablation-seeds", type=int, default=3, help="seeds of the variants with a term off")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", type=Path, help="write the summary here")
    options = parser.parse_args()
    seeds = {variant: options.seeds if variant == "full" else options.ablation_seeds for variant in VARIANTS}
    jobs = [(variant, seed) for variant in VARIANTS for seed in range(seeds[variant])]
    with ThreadPoolExecutor(options.parallel) as pool:
        records = dict(zip(jobs, pool.map(lambda job: run(options.folder, *job), jobs), strict=True))
    label = next(key for key in records[jobs[0]]["rows"][0] if key.startswith("FD["))
    summary: dict[str, Any] = {"figure": label, "protocol_id": records[jobs[0]]["protocol_id"], "variants": {}}
    first = records[jobs[0]]
    summary["teacher"], summary["untrained"] = first["rows"][0][label], first["rows"][1][label]
    for variant in VARIANTS:
        mine = [records[variant, seed] for seed in range(seeds[variant])]
        figures = [record["rows"][2][label] for record in mine]
        summary["variants"][variant] = {
            "figures": figures,
            "mean": statistics.mean(figures),
            "sd": statistics.stdev(figures) if len(figures) > 1 else None,
            "images": mine[0]["config"]["training"]["duration"],
            "cost_forward_equivalents": sum(mine[0]["cost_forward_equivalents"].values()),
            "seconds": [round(record["seconds"]) for record in mine],
            "student_sha256": [record["student_sha256"] for record in mine],
        }
        print(f"{variant:20s} {summary['variants'][variant]['mean']:.5f}  {[round(f, 5) for f in figures]}")
    summary["config"], summary["environment"] = first["config"], first["environment"]
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
