"""A run, finished or not, as Python sees it."""

from __future__ import annotations

import html
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.record import Record
from distillkit.jobs.rows import Row, row_of
from distillkit.reading import Missing, check_format, read_mapping, validated
from distillkit.runs.config import RunConfig
from distillkit.runs.folder import CONFIG, RunFolder
from distillkit.runs.validation import read_config
from distillkit.runs.validation import validated as validated_config
from distillkit.students.artifact import Student
from distillkit.students.load import load_student

LARGEST = 64 * 2**20


class _Row(BaseModel):
    """A line of the closing table."""

    name: str
    nfe: float = Field(ge=0)
    images_per_second: float = Field(ge=0)
    record: Record | None


class _Summary(BaseModel):
    """What of record.json is read again."""

    rows: list[_Row] = Field(min_length=1)
    health: dict[str, str]
    selection: dict[str, Any]
    cost_forward_equivalents: dict[str, float]
    seconds: float = Field(ge=0)
    config: RunConfig
    environment: dict[str, Any]


class Run:
    """The folder of a run: its configuration, its student, its figures.

    >>> run = distil("dmd", duration="10k")                # doctest: +SKIP
    >>> pixels = run.student(64, seed=0)                   # doctest: +SKIP
    >>> run.record.figures                                 # doctest: +SKIP

    Args:
        folder: as `distil` or `distillkit run` made it.

    Raises:
        UsageError: where there is no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / CONFIG).is_file():
            raise UsageError(f"no run in {self.folder}: {CONFIG} is not there")

    @property
    def finished(self) -> bool:
        """Whether the training has ended and the student is measured."""
        return RunFolder(self.folder, "").finished

    @cached_property
    def config(self) -> RunConfig:
        """All that determines the run."""
        file = read_config(self.folder / CONFIG)
        return validated_config(RunConfig, file.values, file, {})

    @cached_property
    def student(self) -> Student:
        """The student; of an unfinished run, its newest checkpoint's moving average."""
        return load_student(self.folder)

    def checkpoint(self, selector: str) -> Student:
        """The student of a checkpoint: "best", "latest", "average", "student" or a step's number."""
        return load_student(f"{self.folder}@{selector}")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What record.json holds: rows, health, cost, selection, environment.

        Raises:
            DistillkitError: where the run is not finished, or the file is damaged.
        """
        try:
            values = read_mapping(self.folder / "record.json", most=LARGEST)
        except Missing as error:
            raise DistillkitError(f"the run in {self.folder} is not finished, so it has no record yet") from error
        check_format(values, 2, str(self.folder / "record.json"))
        validated(_Summary, values, str(self.folder / "record.json"))
        return values

    @cached_property
    def rows(self) -> list[Row]:
        """The closing table: teacher, untrained and distilled student.

        Raises:
            DistillkitError: as `summary`.
        """
        return [row_of(row) for row in self.summary["rows"]]

    @property
    def record(self) -> Record | None:
        """The measured figures of the distilled student; None where there was no protocol."""
        return self.rows[-1].record

    @property
    def health(self) -> dict[str, str]:
        """The last judgement on every diagnostic."""
        return dict(self.summary["health"])

    def __repr__(self) -> str:
        if not self.finished:
            return f"Run({str(self.folder)!r}, not finished)"
        return f"Run({str(self.folder)!r}, {', '.join(f'{row.name}: {_figure(row)}' for row in self.rows)})"

    def _repr_html_(self) -> str:
        if not self.finished:
            return html.escape(repr(self))
        rows = "".join(
            f"<tr><td>{html.escape(row.name)}</td><td>{html.escape(_figure(row))}</td><td>{row.nfe:g}</td>"
            f"<td>{row.images_per_second:,.0f}</td></tr>"
            for row in self.rows
        )
        label = html.escape(self.record.label if self.record else "figure")
        return (
            f"<table><thead><tr><th>generator</th><th>{label}</th><th>NFE</th><th>samples/s</th></tr></thead>"
            f"<tbody>{rows}</tbody></table><p>{html.escape(str(self.folder))}</p>"
        )


def _figure(row: Row) -> str:
    return "not measured" if row.record is None else row.record.figures[row.record.label].text
