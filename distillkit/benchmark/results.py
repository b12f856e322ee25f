"""What a benchmark measured, as a file that its report is made from."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from distillkit.benchmark.suite import Suite
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import write_json
from distillkit.reading import Missing, check_format, read_bytes, read_json, validated

FILE, FORMAT = "results.json", 2
LARGEST = 64 * 2**20


def _inside(path: str) -> str:
    """A folder of results may come from anybody: what it names is inside it."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path or "\0" in path:
        raise ValueError("must be a path inside the benchmark's folder")
    return path


Inside = Annotated[str, AfterValidator(_inside)]
"""A path relative to the benchmark's folder."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(_Part):
    """A figure on the way of a training."""

    cost: float = Field(ge=0, description="forward-equivalents so far, the teacher's passes for the data included")
    images: int
    value: float
    error: float | None = Field(None, description="its standard error")
    nfe: float | None = Field(None, description="network evaluations of a sample, which some methods change on the way")


class Run(_Part):
    """One training and its measurements, or why there are none; or those of a generator that others have trained."""

    kind: Literal["training", "published"] = "training"
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
    seconds: float = Field(0, description="wall time of preparing, training and measuring")
    health: dict[str, str] = Field(default_factory=dict)
    curve: tuple[Point, ...] = ()
    records: tuple[Inside, ...] = Field((), description="files of its records, relative to the benchmark's folder")

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.entry}, published" if self.kind == "published" else f"{self.entry}, seed {self.seed}"


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
    try:
        values = read_json(path, most=LARGEST)
    except Missing as error:
        raise UsageError(f"no results in {folder}: {FILE} is not there") from error
    check_format(values, FORMAT, str(path))
    return validated(Results, values, str(path))


def picture(folder: Path, path: str) -> bytes:
    """The bytes of a PNG file in a benchmark's folder.

    Raises:
        DistillkitError: as `inside`, and for anything but a PNG file.
    """
    data = read_bytes(inside(folder, path), LARGEST)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DistillkitError(f"{folder / path} is not a PNG file, and is not shown")
    return data


def inside(folder: Path, path: str) -> Path:
    """The file of that path in a benchmark's folder, which may come from anybody.

    Raises:
        DistillkitError: where it is not there, or a link leads out of the folder.
    """
    place = folder / path
    if not place.resolve().is_relative_to(folder.resolve()):
        raise DistillkitError(f"{place} leads out of the benchmark's folder, and is not read")
    if not place.is_file():
        raise DistillkitError(f"{place} is named in {FILE} and is not there")
    return place
