"""The colour of each method, the same in every report: chosen by the method's name, not by its rank or its turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from distillkit.benchmark.results import Run

SHIPPED = ("#0072b2", "#d55e00", "#009e73", "#8b1a3a", "#4a2680", "#d63fd0")
OTHERS = ("#7a6a00", "#5f7fd6", "#804669", "#3d4a55", "#a3470c", "#2f7d8a")
"""Colours of methods that ship with distillkit, and of all others. Each has a contrast of at least 3 to white, and the
shipped ones are apart for all common kinds of colour vision."""

PALETTE = SHIPPED + OTHERS
SALT = "171"
"""With it the hashes of the shipped methods' names fall evenly on the colours, and no two lines of a shipped suite look
alike; a test holds that."""

DASHES = ("", "7 4", "2 3", "10 3 2 3")
"""Of the lines that share a colour: one method's entries, such as its ablations, and methods beyond the colours."""


def colour(run: Run) -> int:
    """The place in `PALETTE` of a run's method."""
    name = Path(run.method).stem if run.method.endswith(".py") else run.method
    number = int.from_bytes(hashlib.sha256(f"{SALT}/{name}".encode()).digest()[:4], "big")
    if run.package.split(" ")[0] == "distillkit":
        return number % len(SHIPPED)
    return len(SHIPPED) + number % len(OTHERS)


def dashes(entries: Iterable[tuple[str, Run]]) -> dict[str, str]:
    """Entry -> dash pattern, from (entry, one of its runs) in the suite's order: the first of a colour is solid."""
    used: dict[int, int] = {}
    found = {}
    for entry, run in entries:
        turn = used[colour(run)] = used.get(colour(run), -1) + 1
        found[entry] = DASHES[turn % len(DASHES)]
    return found
