"""Suites: what a benchmark compares and how, as a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillkit.counts import Count
from distillkit.errors import UsageError
from distillkit.evaluation.record import Quoted
from distillkit.registry import registry, unknown
from distillkit.runs.config import explain, read_config

SUITES = Path(__file__).parent / "suites"
"""The suites that ship with the package."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Part):
    """One line of the comparison: a method with its settings, over the preset that fits the suite's teacher."""

    method: str = Field("", description="name of the method; the entry's own name if empty")
    ablation_of: str = Field("", description="the entry that this one leaves something out of")
    note: str = Field("", description="what is special about it, for the report")
    settings: dict[str, Any] = Field(default_factory=dict, description="values of the method's own settings")
    training: dict[str, Any] = Field(default_factory=dict, description="values of the training configuration")
    pairs: dict[str, Any] = Field(default_factory=dict, description="values of the noise-image pair configuration")


class Suite(_Part):
    """A benchmark.

    Fair by construction: every entry gets the same teacher, start weights, seeds, precision, evaluation noise and the
    same budget of network forward-equivalents, pair generation and auxiliary networks included.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="names the folder of results")
    title: str = Field("", description="one line for people")
    teacher: str = Field(description="catalogue name or folder")
    protocol: str = Field("", description="protocol of the evaluation; the teacher's own if empty")
    samples: Count | None = Field(None, ge=2, description="another number of samples than the protocol's")
    seeds: int = Field(1, ge=1, description="trainings of every entry, with the seeds 0, 1, ...")
    budget: Count = Field(ge=1, description="forward-equivalents of one training")
    nfe: tuple[int, ...] = Field((), description="evaluations to measure students at, beside their own, where they can")
    teacher_steps: tuple[int, ...] = Field((), description="Heun steps to measure the teacher at")
    curve_points: int = Field(8, ge=1, description="scores of every training on its way")
    training: dict[str, Any] = Field(default_factory=dict, description="training values for every entry: precision ...")
    data: dict[str, Any] = Field(default_factory=dict, description="real images, for the methods that need them")
    methods: dict[str, Entry] = Field(min_length=1, description="entries by name")
    quoted: tuple[Quoted, ...] = Field((), description="published figures, shown apart")

    def method_of(self, entry: str) -> str:
        """Name of the method behind an entry."""
        return self.methods[entry].method or entry


def shipped_suites() -> list[str]:
    """Names of the suites in the package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """A suite by name, or from a file.

    Raises:
        UsageError: for an unknown name, or a file with mistakes; names file, line and the nearest valid key.
    """
    path = SUITES / f"{name}.yaml" if name in shipped_suites() else Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            unknown("suite", name, shipped_suites(), "distillkit bench --help") + " A YAML file works too."
        )
    file = read_config(path)
    try:
        suite = Suite.model_validate(file.values)
    except ValidationError as error:
        raise UsageError(explain(error, Suite, file)) from error
    for entry, settings in suite.methods.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", entry):
            raise UsageError(f"{path}: the entry {entry!r} names files: letters, digits, dots, dashes and underscores")
        if settings.ablation_of and settings.ablation_of not in suite.methods:
            raise UsageError(f"{path}: {entry} is an ablation of {settings.ablation_of!r}, which is no entry")
    return suite


def chosen(
    suite: Suite, *, methods: Sequence[str] = (), seeds: int | None = None, budget: int | None = None, images: str = ""
) -> Suite:
    """The suite with some of its entries, or with other installed methods under their presets, and other numbers.

    Args:
        images: where real images lie, for the methods that need them.

    Raises:
        UsageError: for a name that is neither an entry nor an installed method.
    """
    changes: dict[str, Any] = {"seeds": seeds, "budget": budget}
    if images:
        changes["data"] = {**suite.data, "path": images}
    if methods:
        installed = registry().methods
        for name in methods:
            if name not in suite.methods and name not in installed:
                raise UsageError(unknown("method", name, {*suite.methods, *installed}, "distillkit methods"))
        changes["methods"] = {name: suite.methods.get(name, Entry()) for name in methods}
        changes["methods"] = {
            name: entry if entry.ablation_of in methods else entry.model_copy(update={"ablation_of": ""})
            for name, entry in changes["methods"].items()
        }
    return suite.model_copy(update={key: value for key, value in changes.items() if value is not None})
