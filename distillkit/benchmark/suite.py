"""Suites: what a benchmark compares and how, as a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distillkit.counts import Count
from distillkit.errors import UsageError
from distillkit.evaluation.record import Quoted
from distillkit.models.diffusers.options import PLAIN, PipelineConfig
from distillkit.models.diffusers.published import PLAIN_SAMPLING, PublishedConfig
from distillkit.registry import method_name, registry, unknown
from distillkit.runs.validation import explain, read_config

SUITES = Path(__file__).parent / "suites"
"""The suites that ship with the package: one file each."""

Sources = dict[str, dict[str, Any]]
"""Settings of sources by their names: {"pairs": {"count": 4096}}."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Part):
    """One line of the comparison: a method with its settings, over the preset that fits the suite's teacher."""

    method: str = Field(
        "", description="name of the method, or a Python file that defines it; the entry's own name if empty"
    )
    ablation_of: str = Field("", description="the entry that this one leaves something out of")
    note: str = Field("", description="what is special about it, for the report")
    settings: dict[str, Any] = Field(default_factory=dict, description="values of the method's own settings")
    training: dict[str, Any] = Field(default_factory=dict, description="values of the training configuration")
    student: dict[str, Any] = Field(default_factory=dict, description="values of the student's: where it starts")
    sources: Sources = Field(default_factory=dict, description="values of its data, by source")


class Published(PublishedConfig):
    """A generator that others have trained: measured as the suite's own students are, never trained."""

    subject: str = Field(
        min_length=1, max_length=4096, description="student folder, or pipeline of diffusers: a folder or hf:ORG/REPO"
    )
    steps: int | None = Field(None, ge=1, le=10_000, description="evaluations, or steps of a pipeline's scheduler")
    guidance: float | None = Field(None, ge=0, le=1e6, description="of a pipeline, 1 if none; of a student, its own")
    note: str = Field("", description="what is special about it, for the report")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("write what it is as {subject: " + value + "}")
        return value

    @property
    def assembly(self) -> PublishedConfig:
        """What a pipeline gets in the place of its own parts."""
        fields = set(PLAIN_SAMPLING.model_dump())
        return PublishedConfig.model_validate(self.model_dump(include=fields))


class Suite(_Part):
    """A benchmark.

    Fair by construction: every entry gets the same teacher, start weights, seeds, precision, evaluation noise and the
    same budget of network forward-equivalents, the teacher's passes for its data and auxiliary networks included.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$", description="names the folder of results")
    default: bool = Field(False, description="the suite that is taken where none is named")
    title: str = Field("", description="one line for people")
    teacher: str = Field(description="catalogue name or folder")
    pipeline: PipelineConfig = Field(
        PLAIN, description="how the teacher is used: resolution, embedded_guidance, guide_with"
    )
    protocol: str = Field(
        "", description="protocol of all figures, or a file of `reference make`; the teacher's own if empty"
    )
    samples: Count | None = Field(None, ge=2, description="another number of samples than the protocol's")
    seeds: int = Field(1, ge=1, le=1000, description="trainings of every entry, with seeds that follow one another")
    first_seed: int = Field(
        0, ge=0, le=2**31, description="the first of them: another than the one by which settings were chosen"
    )
    budget: Annotated[Count, Field(ge=1)] | None = Field(
        None, description="forward-equivalents of one training; needed where there are methods"
    )
    nfe: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (), description="evaluations to measure students at, beside their own, where they can"
    )
    teacher_steps: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (), description="steps of its solver to measure the teacher at; its own number if empty"
    )
    guidance: float = Field(
        1.0, ge=0, description="of the teacher where it is measured, and of every entry that names no other"
    )
    curve_points: int = Field(8, ge=1, le=1000, description="evaluations of every training on its way")
    training: dict[str, Any] = Field(default_factory=dict, description="training values for every entry: precision ...")
    prompts: dict[str, Any] = Field(
        default_factory=dict, description="prompts to train with: {path: FILE}; the teacher's own if empty"
    )
    sources: Sources = Field(default_factory=dict, description="values of the data for every entry, by source")
    methods: dict[str, Entry] = Field(default_factory=dict, max_length=1000, description="entries by name")
    published: dict[str, Published] = Field(
        default_factory=dict, max_length=1000, description="generators that others have trained, by name"
    )
    quoted: tuple[Quoted, ...] = Field((), description="published figures, shown apart")

    @property
    def training_seeds(self) -> range:
        """The seeds of every entry's trainings."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @model_validator(mode="after")
    def _something_to_compare(self) -> Self:
        if not self.methods and not self.published:
            raise ValueError("a suite has methods, or published generators")
        if self.methods and self.budget is None:
            raise ValueError("a suite with methods has a budget: forward-equivalents of one training")
        if both := sorted(self.methods.keys() & self.published.keys()):
            raise ValueError(f"{both[0]} is a method and a published generator: give them two names")
        return self

    @model_validator(mode="after")
    def _guided(self) -> Self:
        if self.pipeline.guide_with is not None and self.guidance == 1:
            raise ValueError(
                f"guide_with {self.pipeline.guide_with}: with guidance 1 the guide would not be evaluated; say "
                "guidance: 2, or another weight, for the whole suite"
            )
        return self

    def method_of(self, entry: str) -> str:
        """The method behind an entry: its name or its file."""
        return self.methods[entry].method or entry


def shipped_suites() -> list[str]:
    """Names of the suites in the package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


@cache
def default_suite() -> str:
    """The shipped suite whose file says `default: true`."""
    return next(name for name in shipped_suites() if read_config(SUITES / f"{name}.yaml").values.get("default"))


def load_suite(name: str | Path) -> Suite:
    """A suite by name, or from a file; files of methods are found beside it.

    Raises:
        UsageError: for an unknown name, or a file with mistakes; names file, line and the nearest valid key.
    """
    path = SUITES / f"{name}.yaml" if str(name) in shipped_suites() else Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            unknown("suite", str(name), shipped_suites(), "distillkit bench --help") + " A YAML file works too."
        )
    file = read_config(path)
    try:
        suite = Suite.model_validate(file.values)
    except ValidationError as error:
        raise UsageError(explain(error, Suite, file)) from error
    _check_entries(suite, str(path))
    methods = {
        entry: values.model_copy(update={"method": _beside(path.parent, values.method, "methods")})
        for entry, values in suite.methods.items()
    }
    files: dict[str, Any] = {
        key: _beside(path.parent, getattr(suite, key), f"{key}s") for key in ("teacher", "protocol")
    }
    if guide := suite.pipeline.guide_with:
        files["pipeline"] = suite.pipeline.model_copy(update={"guide_with": _beside(path.parent, guide, "teachers")})
    prompts = suite.prompts.get("path")
    beside = (
        {"path": str(path.parent / prompts)} if isinstance(prompts, str) and (path.parent / prompts).exists() else {}
    )
    published = {entry: _published_beside(path.parent, values) for entry, values in suite.published.items()}
    own = {"methods": methods, "published": published, "prompts": {**suite.prompts, **beside}}
    return suite.model_copy(update={**own, **files})


def _published_beside(folder: Path, values: Published) -> Published:
    """The entry with the paths from here of what it names by that from the suite's folder."""
    names = {key: value for key in ("subject", "lora", "weights", "scheduler") if (value := getattr(values, key))}
    return values.model_copy(update={key: _beside(folder, value, "teachers") for key, value in names.items()})


def _beside(folder: Path, name: str, kind: str) -> str:
    """The path from here of a file or folder that a suite names by that from its own folder; else the name as it is."""
    is_file = name and name not in registry().named(kind) and (folder / name).exists()
    return str(folder / name) if is_file else name


def _check_entries(suite: Suite, where: str) -> None:
    for entry in (*suite.methods, *suite.published):
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", entry):
            raise UsageError(f"{where}: the entry {entry!r} names files: letters, numbers, dots and dashes alone")
    for entry, values in suite.methods.items():
        if values.ablation_of and values.ablation_of not in suite.methods:
            raise UsageError(f"{where}: {entry} is an ablation of {values.ablation_of!r}, which is no entry")


def chosen(
    suite: Suite, *, methods: Sequence[str] = (), seeds: int | None = None, budget: int | None = None,
    data: str | Path | None = None, protocol: str | Path | None = None, prompts: str | Path | None = None,
) -> Suite:  # fmt: skip
    """The suite with some of its entries, or with other methods under their presets, and other numbers.

    Args:
        methods: entries, published generators of the suite, installed methods, or Python files that define one.
        data: real images, for the methods that read them.
        prompts: to train with: a file, or hf:ORG/NAME:COLUMN.
        protocol: of all figures: a name, or a file of `reference make`.

    Raises:
        UsageError: for a name that is none of these, or a number out of bounds.
    """
    changes: dict[str, Any] = {"seeds": seeds, "budget": budget}
    if protocol is not None:
        changes["protocol"] = str(protocol)
    if data is not None:
        changes["sources"] = {**suite.sources, "data": {**suite.sources.get("data", {}), "path": str(data)}}
    if prompts is not None:
        changes["prompts"] = {"path": str(prompts)}
    if methods:
        published = {name: suite.published[name] for name in methods if name in suite.published}
        changes |= {"published": published, "methods": _picked(suite, [n for n in methods if n not in published])}
    changed = {**suite.model_dump(), **{key: value for key, value in changes.items() if value is not None}}
    try:
        return Suite.model_validate(changed)
    except ValidationError as error:
        raise UsageError(explain(error, Suite)) from error


def _picked(suite: Suite, names: Iterable[str]) -> dict[str, Entry]:
    picked: dict[str, Entry] = {}
    for name in names:
        if name.endswith(".py"):
            picked[method_name(name)] = Entry(method=name)
        elif name in suite.methods:
            picked[name] = suite.methods[name]
        elif name in (installed := registry().named("methods")):
            picked[name] = Entry()
        else:
            known = {*suite.methods, *suite.published, *installed}
            raise UsageError(unknown("method", name, known, "distillkit methods"))
    return {
        name: entry if entry.ablation_of in picked else entry.model_copy(update={"ablation_of": ""})
        for name, entry in picked.items()
    }
