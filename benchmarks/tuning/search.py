"""The search: a seeded quasi-random sequence of settings at a share of the budget, then the best at the whole.

It trains with a seed that the suite's own trainings do not have: a report with the seed by which settings were chosen
would flatter them.

Every setting is an entry of a suite and is trained, resumed and measured by `distillkit.bench`, as the suite's own are.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import qmc

from benchmarks.tuning.dimensions import Changes, setting
from benchmarks.tuning.spaces import space
from distillkit import bench
from distillkit.benchmark.outcomes import LARGEST_METRICS
from distillkit.benchmark.results import Run
from distillkit.benchmark.suite import Entry, Suite
from distillkit.engine.config import INTERVALS
from distillkit.evaluation.record import Record, read_record
from distillkit.reading import json_lines
from distillkit.runs.validation import merge

Line = dict[str, Any]
"""One training in the log."""

SEED = 0
"""Of the trainings."""

LENGTHS = frozenset({"duration", *(f"{kind}_every" for kind in INTERVALS)})
"""Of the training's settings those that the budget gives."""


def settings_of(suite: str, entry: str, count: int, seed: int) -> list[Changes]:
    """The preset as it is, then points of a scrambled Sobol sequence (Owen 1998); the same for the same seed."""
    dimensions = space(suite, entry)
    points = qmc.Sobol(len(dimensions), scramble=True, rng=seed).random_base2((count - 1).bit_length())
    return [{}, *(setting(dimensions, point) for point in points[: count - 1])]


def tried(
    suite: Suite, entry: str, changes: Sequence[tuple[int, Changes]], budget: int, folder: Path, round_: str
) -> list[Line]:
    """Train and measure the entry with each of these numbered changes; what is in the folder already is kept."""
    whole = suite.methods[entry]
    entries = {
        f"{entry}-{number:02}": Entry(
            method=suite.method_of(entry),
            settings=merge(whole.settings, change.get("settings", {})),
            training=merge(whole.training, change.get("training", {})),
            student=merge(whole.student, change.get("student", {})),
            sources=merge(whole.sources, change.get("sources", {})),
        )
        for number, change in changes
    }
    own: dict[str, Any] = {"methods": entries, "budget": budget, "seeds": 1, "first_seed": SEED}
    own |= {"curve_points": 1, "nfe": (), "teacher_steps": (1,)}
    # A training takes a minute or two: writing sixteen checkpoints of it took a twelfth of that. No image is cheaper
    # than one forward-equivalent, so that none is due before the last.
    own["training"] = suite.training | {"checkpoint_every": budget}
    result = bench(suite.model_copy(update=own), output_dir=folder, quiet=True)
    runs = {run.entry: run for run in result.results.runs}
    return [
        {"suite": suite.name, "entry": entry, "round": round_, "number": number, "changes": change}
        | figures(runs[f"{entry}-{number:02}"], folder)
        for number, change in changes
    ]


def figures(run: Run, folder: Path) -> Line:
    """What came of one training; `value` is None where it failed."""
    if run.state == "failed":
        return {"value": None, "reason": run.reason}
    record = read_record(folder / run.records[0])
    assert isinstance(record, Record)
    own = record.figures[record.label]
    others = {label: figure.value for label, figure in record.figures.items() if label != record.label}
    return {
        "label": record.label, "value": own.value, "error": own.standard_error, "others": others,
        "cost": round(sum(run.cost.values())), "images": run.images, "config": settings_in(run.config),
        "health": run.health,
        "diagnostics": diagnostics(folder / run.folder, run.health),
    }  # fmt: skip


def settings_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that a preset or an entry could say of a training with this configuration."""
    training = {name: value for name, value in config["training"].items() if name not in LENGTHS}
    pairs = {name: value for name, value in config["sources"].get("pairs", {}).items() if name != "guidance"}
    return {"settings": config["settings"], "training": training, "student": config["student"], "pairs": pairs}


def diagnostics(run: Path, names: Iterable[str]) -> dict[str, float]:
    """The mean of each logged value over the last quarter of a training."""
    logged = list(json_lines(run / "metrics.jsonl", most=LARGEST_METRICS))
    last = [line for line in logged if line["images"] > 0.75 * logged[-1]["images"]]
    values = {name: [line[name] for line in last if name in line] for name in names}
    return {name: statistics.fmean(found) for name, found in values.items() if found}


def best(lines: Sequence[Line], count: int) -> list[Line]:
    """The lines with the smallest figures."""
    return sorted((line for line in lines if line["value"] is not None), key=lambda line: line["value"])[:count]


def search(
    suite: Suite, entry: str, folder: Path, *, settings: int, share: float, finalists: int, seed: int
) -> list[Line]:
    """All trainings of one entry's search: `settings` at a share of the budget, the best `finalists` at the whole."""
    changes = list(enumerate(settings_of(suite.name, entry, settings, seed)))
    first = tried(suite, entry, changes, round(share * suite.budget), folder / f"{entry}-share", "share")
    again = [(line["number"], line["changes"]) for line in best(first, finalists)]
    whole = tried(suite, entry, again, suite.budget, folder / f"{entry}-whole", "whole") if again else []
    return [*first, *whole]
