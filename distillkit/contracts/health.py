"""Diagnostics: logged values with the ranges that a healthy run keeps to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    OK = "ok"
    WATCH = "watch"
    COLLAPSED = "collapsed"


@dataclass(frozen=True)
class Diagnostic:
    """A value that a method logs, judged on its mean over a logging interval.

    Args:
        name: the logged name.
        ok: inclusive range of a healthy run.
        watch: wider inclusive range; outside of it the run counts as collapsed.
        meaning: one sentence for the person who reads a warning: what it shows and what to try.
    """

    name: str
    ok: tuple[float, float]
    watch: tuple[float, float]
    meaning: str

    def judge(self, value: float) -> Health:
        if math.isfinite(value) and self.ok[0] <= value <= self.ok[1]:
            return Health.OK
        if math.isfinite(value) and self.watch[0] <= value <= self.watch[1]:
            return Health.WATCH
        return Health.COLLAPSED
