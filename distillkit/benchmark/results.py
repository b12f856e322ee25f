"""What a benchmark measured, as a file that its report is made from."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from distillkit.benchmark.suite import Suite
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import write_json

FILE = "results.json"


def _inside(path: str) -> str:
    """A folder of results may come from anybody: what it names is inside it."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("must be a path inside the benchmark's folder")
    return path


Inside = Annotated[str, AfterValidator(_inside)]
"""A path relative to the benchmark's folder."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(_Part):
    """A figure on the way of a training."""

    cost: float = Field(description="forward-equivalents so far, the teacher's passes for the data included")
    images: int
    value: float
    error: float | None = Field(None, description="its standard error")
    nfe: float | None = Field(None, description="network evaluations of a sample, which some methods change on the way")


class Run(_Part):
    """One training and its measurements, or why there are none."""

    entry: str
    method: str
    package: str
    seed: int
    state: Literal["done", "failed"]
    reason: str = ""
    folder: Inside = Field("", description="of the run, relative to the benchmark's")
    key: str = Field("", description="hash of all that its result depends on")
    config: dict[str, Any] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict, description="forward-equivalents by role")
    images: int = Field(0, description="images trained on")
    seconds: float = Field(0, description="wall time, evaluations included, since it was last resumed")
    health: dict[str, str] = Field(default_factory=dict)
    curve: tuple[Point, ...] = ()
    records: tuple[Inside, ...] = Field((), description="files of its records, relative to the benchmark's folder")


class Results(_Part):
    """A benchmark."""

    format: Literal[2] = 2
    kind: Literal["bench"] = "bench"
    suite: Suite
    runs: tuple[Run, ...] = ()
    teacher_records: tuple[Inside, ...] = ()
    grid: dict[str, Inside] = Field(default_factory=dict, description="generator -> picture, all from the same noise")
    measured: dict[str, str] = Field(default_factory=dict, description="record -> hash of all that it depends on")
    environment: dict[str, Any] = Field(default_factory=dict)
    created: str = ""

    def with_run(self, run: Run) -> Results:
        """The results with this run in the place of an earlier one of its entry and seed."""
        others = [r for r in self.runs if (r.entry, r.seed) != (run.entry, run.seed)]
        return self.model_copy(update={"runs": (*others, run)})

    @property
    def failed(self) -> list[Run]:
        """The runs without a result."""
        return [run for run in self.runs if run.state == "failed"]


def write_results(folder: Path, results: Results) -> None:
    write_json(folder / FILE, results.model_dump(mode="json"))


def read_results(folder: Path) -> Results:
    """The results in a benchmark's folder.

    Raises:
        UsageError: when there are none.
        DistillkitError: when the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"no results in {folder}: {FILE} is not there")
    try:
        return Results.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise DistillkitError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, OSError) as error:
        raise DistillkitError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
