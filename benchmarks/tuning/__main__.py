"""`python -m benchmarks.tuning SUITE [ENTRY ...]`: tune entries of a suite with equal care, and write what was found.

Each entry gets the same number of settings, drawn from its space (`spaces.py`), at the same share of the
suite's budget with seed 0; the best few are trained again at the whole budget, and the best of these is the choice. The
log has a line for every training. Stopped and started again, it goes on; entries in the log are not searched again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.tuning.search import Line, search
from benchmarks.tuning.spaces import space
from benchmarks.tuning.summary import summary
from distillkit.benchmark.suite import load_suite
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import append_bytes, write_bytes

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.tuning", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("suite", help="its name")
    parser.add_argument("entries", nargs="*", help="of the suite; all by default")
    parser.add_argument(
        "--settings", type=within(int, 1, 2**12), default=24, help="for each entry, its preset among them"
    )
    parser.add_argument("--share", type=within(float, 1e-6, 1), default=0.25, help="of the budget, for each setting")
    parser.add_argument(
        "--finalists", type=within(int, 1, 2**12), default=3, help="that are trained at the whole budget"
    )
    parser.add_argument("--seed", type=within(int, 0, 2**63 - 1), default=0, help="of the sequence of settings")
    parser.add_argument("--folder", type=Path, default=Path("tuning"), help="of the trainings")
    parser.add_argument("--log", type=Path, help="benchmarks/results/SUITE/tuning.jsonl by default")
    options = parser.parse_args()
    try:
        tune(options)
    except DistillkitError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")


def within(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    """A reader of numbers from `low` to `high`, for argparse."""

    def read(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    read.__name__ = kind.__name__
    return read


def tune(options: argparse.Namespace) -> None:
    """Search what is not in the log yet.

    Raises:
        UsageError: for a suite or an entry that there is not, before anything is trained.
        DistillkitError: as `distillkit.bench`.
    """
    suite = load_suite(options.suite)
    for entry in options.entries or suite.methods:
        if entry not in suite.methods:
            raise UsageError(f"the suite {suite.name} has no entry {entry!r}, but: {', '.join(suite.methods)}")
        try:
            space(suite.name, entry)
        except KeyError as error:
            raise UsageError(
                f"{error} has no space to search, which {entry} of the suite {suite.name} needs: add one to "
                "benchmarks/tuning/spaces.py"
            ) from error
    log = options.log or RESULTS / suite.name / "tuning.jsonl"
    for entry in options.entries or suite.methods:
        if any(line["entry"] == entry for line in read(log)):
            print(f"{entry}: in {log} already")
            continue
        lines = search(
            suite, entry, options.folder / suite.name, settings=options.settings, share=options.share,
            finalists=options.finalists, seed=options.seed,
        )  # fmt: skip
        append_bytes(log, "".join(json.dumps(line) + "\n" for line in lines).encode())
        write_bytes(log.with_suffix(".md"), summary(suite, read(log)).encode())
        print(f"{entry}: {len(lines)} trainings in {log}")


def read(log: Path) -> list[Line]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


if __name__ == "__main__":
    main()
