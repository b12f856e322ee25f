"""Messages between the bench and its workers: small files in the benchmark's folder, so that a worker may be a
process here or a job on another machine that sees the same folder."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from distillkit.benchmark.jobs import Job
from distillkit.benchmark.results import Inside, Run
from distillkit.benchmark.suite import Published, Suite
from distillkit.errors import DistillkitError
from distillkit.files import write_json
from distillkit.jobs.planned import method_offer
from distillkit.reading import Missing, Unreadable, read_json, validated
from distillkit.runs.config import RunConfig

FOLDER, LOGS = "workers", "logs"
SETTINGS, ALIVE = "settings.json", "alive"
ORDER, STATE, ANSWER = "order.json", "state.json", "answer.json"
LARGEST = 64 * 2**20

Kind = Literal["plan", "teacher", "training"]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Message):
    """What every worker begins with."""

    suite: Suite
    device: str
    timeout: float = Field(gt=0)
    plugins: tuple[str, ...] = Field((), description="files that were taken as plugins")
    arguments: tuple[str, ...] = Field((), description="of the bench's command, for what records say of their making")
    silence: float | None = Field(
        None, gt=0, description="seconds without a sign of the bench after which a worker stops; none: it holds a pipe"
    )


class Training(_Message):
    """One training, planned; or a published generator."""

    entry: str
    seed: int = Field(ge=0)
    key: str = ""
    problem: str = ""
    config: RunConfig | None = None
    passes: dict[str, float] | None = None
    sources_cost: int = Field(0, ge=0)
    code: str = Field("", description="hash of the source that it was planned with")
    published: Published | None = None

    @classmethod
    def of(cls, job: Job) -> Training:
        return cls(
            entry=job.entry, seed=job.seed, key=job.key, problem=job.problem, config=job.config, passes=job.passes,
            sources_cost=job.sources_cost, code=job.code, published=job.published,
        )  # fmt: skip

    def job(self, suite: Suite) -> Job:
        """As the harness takes it.

        Raises:
            DistillkitError: when the source is another by now, so that the key would be that of something else.
        """
        if self.published:
            return Job(self.entry, self.seed, key=self.key, problem=self.problem, published=self.published)
        method = None
        with suppress(DistillkitError):
            method = method_offer(suite.method_of(self.entry))
        job = Job(self.entry, self.seed, method, self.config, self.passes, self.sources_cost, self.key, self.problem)
        if not self.problem and job.code != self.code:
            raise DistillkitError(
                f"the source of {self.entry} or of distillkit has changed since the bench began; give the same command "
                "again, which makes anew what depends on it"
            )
        return job


class Assignment(_Message):
    """One thing to do."""

    number: int = Field(ge=1)
    kind: Kind
    training: Training | None = None
    log: Inside = Field(description="where its output goes, relative to the benchmark's folder")


class Order(_Message):
    """What a worker is to do now: the assignment, after which it waits for the next, or to end."""

    assignment: Assignment | None = None
    end: Literal["", "when idle", "at the next safe place"] = ""


class State(_Message):
    """Where a worker is."""

    number: int = Field(0, description="of its assignment; 0 while it waits for one")
    title: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    note: str = ""


class Answer(_Message):
    """What became of an assignment."""

    number: int
    failure: str = Field("", description="why the whole benchmark cannot go on; empty otherwise")
    exit_code: int = 1
    trainings: tuple[Training, ...] = ()
    environment: dict[str, Any] = Field(default_factory=dict)
    run: Run | None = None
    teacher_records: tuple[Inside, ...] = ()
    grid: dict[str, Inside] = Field(default_factory=dict)
    measured: dict[str, str] = Field(default_factory=dict)


Found = TypeVar("Found", Order, State, Answer)


class Place:
    """A worker's folder, of one start of it: an order to an earlier one is not meant for a later one.

    Args:
        folder: the benchmark's.
        name: NUMBER-START, the number from 1.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.bench, self.folder = name, folder, folder / FOLDER / name
        self.number = int(name.partition("-")[0])
        self._answer: Answer | None = None
        self._seen = (0, 0, 0)

    @classmethod
    def new(cls, folder: Path, number: int) -> Place:
        """For a start of the worker of that number."""
        place = cls(folder, f"{number}-{secrets.token_hex(4)}")
        place.folder.mkdir(parents=True)
        return place

    @property
    def log(self) -> Path:
        """What a worker says outside of assignments."""
        return self.bench / LOGS / f"worker-{self.number}.log"

    def send(self, name: str, message: BaseModel) -> None:
        """Write a message, whole."""
        write_json(self.folder / name, message.model_dump(mode="json"))

    def show(self, state: State) -> None:
        """Write where the worker is; many times, so that nothing waits for the disk, and a failure does not matter."""
        aside = self.folder / f".{STATE}.{os.getpid()}.tmp"
        with suppress(OSError):
            aside.write_text(json.dumps(state.model_dump(mode="json")), encoding="utf-8")
            aside.replace(self.folder / STATE)

    def order(self) -> Order:
        return _read(self.folder / ORDER, Order) or Order()

    def state(self) -> State:
        try:
            return _read(self.folder / STATE, State) or State()
        except Unreadable:
            return State()

    def answer(self) -> Answer | None:
        """The last answer; read again only where there is a new one, as a plan is long and is looked for often."""
        try:
            file = (self.folder / ANSWER).stat()
        except OSError:
            return None
        seen = file.st_ino, file.st_mtime_ns, file.st_size
        if seen != self._seen:
            self._answer, self._seen = _read(self.folder / ANSWER, Answer), seen
        return self._answer


def write_settings(folder: Path, settings: Settings) -> None:
    write_json(folder / FOLDER / SETTINGS, settings.model_dump(mode="json"))


def read_settings(folder: Path) -> Settings:
    """What every worker begins with.

    Raises:
        Unreadable: when it is not there or damaged.
    """
    path = folder / FOLDER / SETTINGS
    return validated(Settings, read_json(path, most=LARGEST), str(path))


def _read(path: Path, kind: type[Found]) -> Found | None:
    try:
        return validated(kind, read_json(path, most=LARGEST), str(path))
    except Missing:
        return None
