"""The log of a search as a page for people."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.tuning.search import SEED, Line, best
from distillkit.benchmark.suite import Suite


def summary(suite: Suite, lines: Sequence[Line]) -> str:
    """Markdown: how the search went, then for each entry, in the suite's order, its finalists and its choice."""
    lines = sorted(lines, key=lambda line: list(suite.methods).index(line["entry"]))
    names = list(dict.fromkeys(line["entry"] for line in lines))
    entries = (text for name in names for text in _entry(name, lines))
    return "\n".join([*_head(suite, lines), *_health(lines), *entries, ""])


def _head(suite: Suite, lines: Sequence[Line]) -> Iterator[str]:
    label = next((line["label"] for line in lines if "label" in line), "")
    first = [line for line in lines if line["round"] == "share"]
    each = max(sum(line["entry"] == name for line in first) for name in {line["entry"] for line in first})
    whole = [line["entry"] for line in lines if line["round"] == "whole"]
    finalists = max((whole.count(name) for name in set(whole)), default=0)
    yield f"# How the presets for the suite `{suite.name}` were chosen"
    yield ""
    yield (
        f"Each entry had the same number of settings ({each}: its former preset, number 0, and points of a seeded "
        "quasi-random sequence in the space that `benchmarks/tuning/spaces.py` gives it), each trained with "
        f"seed {SEED} for the same share of the suite's budget of {suite.budget:,} forward-equivalents. The best "
        f"{finalists} were trained again for the whole; the best of these is the choice. The figure is {label}, lower "
        "is better; every training is a line of `tuning.jsonl`, with all of its settings. The report is of trainings "
        "with other seeds: the figures that decided are the best of several, and would flatter."
    )
    yield ""
    yield "| entry | share: preset | median | best | failed | whole: choice | number |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name in dict.fromkeys(line["entry"] for line in lines):
        yield _row(name, [line for line in lines if line["entry"] == name])


def _row(name: str, lines: Sequence[Line]) -> str:
    first = [line for line in lines if line["round"] == "share"]
    values = [line["value"] for line in first if line["value"] is not None]
    preset = next((line["value"] for line in first if line["number"] == 0), None)
    middle, least = (statistics.median(values), min(values)) if values else (None, None)
    choice = chosen(lines)
    cells = [
        name, _number(preset), _number(middle), _number(least), str(len(first) - len(values)),
        _number(choice["value"] if choice else None), str(choice["number"]) if choice else "none",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


GOOD, BAD = 1.5, 4.0
"""In figures of an entry's best training at the same budget: what ended well is below, what ended badly above."""


def _health(lines: Sequence[Line]) -> Iterator[str]:
    yield from (
        "", "## Health", "",
        f"Means of the logged values over the last quarter of the trainings that ended within {GOOD} times the figure "
        f"of their entry's best of the same round, and of those that ended above {BAD} times it, all entries together: "
        "median and the range from the 5th to the 95th percentile, and the share that was judged ok at its end, by the "
        "ranges that held then.", "",
        "| value | trainings | ended well | ok | trainings | ended badly | ok |", "|---|---:|---:|---:|---:|---:|---:|",
    )  # fmt: skip
    good, bad = [], []
    for line in lines:
        if line["value"] is not None:
            same = [other for other in lines if (other["entry"], other["round"]) == (line["entry"], line["round"])]
            ratio = line["value"] / best(same, 1)[0]["value"]
            (good if ratio <= GOOD else bad if ratio > BAD else []).append(line)
    for name in sorted({name for line in lines for name in line.get("diagnostics", {})}):
        yield f"| `{name}` | {_judged(name, good)} | {_judged(name, bad)} |"


def _judged(name: str, lines: Sequence[Line]) -> str:
    found = [line for line in lines if name in line["diagnostics"]]
    if not found:
        return "0 | |"
    low, middle, high = np.quantile([line["diagnostics"][name] for line in found], (0.05, 0.5, 0.95))
    ok = sum(line["health"][name] == "ok" for line in found) / len(found)
    return f"{len(found)} | {middle:.3g} ({low:.3g} to {high:.3g}) | {ok:.0%}"


def _entry(name: str, lines: Sequence[Line]) -> Iterator[str]:
    own = [line for line in lines if line["entry"] == name]
    yield from (
        "",
        f"## {name}",
        "",
        "| number | share | whole | changes to the former preset |",
        "|---:|---:|---:|---|",
    )
    share = {line["number"]: line["value"] for line in own if line["round"] == "share"}
    for line in best([line for line in own if line["round"] == "whole"], len(own)):
        number = line["number"]
        yield f"| {number} | {_number(share[number])} | {_number(line['value'])} | {_changes(line['changes'])} |"


def chosen(lines: Sequence[Line]) -> Line | None:
    """The best at the whole budget, of one entry's lines; None where all failed."""
    return next(iter(best([line for line in lines if line["round"] == "whole"], 1)), None)


def _changes(changes: Any, above: str = "") -> str:
    parts = [
        _changes(value, f"{above}{name}.") if isinstance(value, dict) else f"`{above}{name}` {value}"
        for name, value in changes.items()
    ]
    return ", ".join(parts) or "none"


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4g}"
