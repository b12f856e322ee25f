"""What a teacher's name refers to: something offered, a folder, a file of weights, or a repository of the hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.downloads import offline
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import note_use, sha256
from distillkit.models.diffusers import folder as diffusers_folder
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.options import PLAIN, PipelineConfig
from distillkit.models.precision import in_dtype
from distillkit.models.store import fetch
from distillkit.models.store.card import Card, TeacherOffer, with_data
from distillkit.models.store.convert import convert
from distillkit.models.store.folder import SPEC, WEIGHTS, fresh_teacher, is_teacher_folder, read_spec, read_teacher
from distillkit.models.store.prompts import own_prompts
from distillkit.progress import Reporter
from distillkit.registry import Installed, blaming, registry


class Reference(ABC):
    """A teacher that was named, before it is loaded.

    Attributes:
        name: by which it can be asked for again.
        card: its catalogue entry, where it has one.
    """

    name: str
    card: Card | None = None

    @property
    def unguided(self) -> Reference:
        """The teacher without a network that guides it."""
        return self

    def with_options(self, asked: PipelineConfig) -> Reference:
        """The same, of which something is asked beside its files.

        Raises:
            UsageError: where it is no pipeline of diffusers.
        """
        asked.refuse_for(f"{self.name} is none")
        return self

    @property
    def spec(self) -> TeacherSpec | None:
        """Its facts without its weights; None where only loading tells.

        Raises:
            UsageError, DistillkitError: when its description cannot be read.
        """
        return self.card.spec if self.card else None

    @property
    def preset_name(self) -> str:
        """The name under which presets and protocols know it."""
        return self.card.name if self.card else self.name

    @property
    def available(self) -> bool:
        """Whether it can be loaded without a download."""
        return True

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of what has to be downloaded before it can be loaded."""
        return () if self.available else (self.name,)

    @property
    def place(self) -> Path | None:
        """Its file or folder on this disk; None where it comes with a package, or is not here."""
        return None

    @property
    def download_bytes(self) -> int | None:
        """About how much there is to download; None where that is not known before."""
        return 0

    def check(self) -> None:  # noqa: B027 - most are at hand
        """Refuse a teacher that is not there and that the user has forbidden to download.

        Raises:
            DistillkitError: as `load`, before anything is read.
        """

    @abstractmethod
    def load(
        self, reporter: Reporter, should_stop: Callable[[], int] = lambda: 0, dtype: torch.dtype = torch.float32
    ) -> Teacher:
        """The teacher; downloaded and converted first where that has not been done.

        Args:
            reporter: where downloads are reported.
            should_stop: a signal's number once one has come, else 0.
            dtype: of its network's weights, and of its text encoders'.

        Raises:
            UsageError: when it is not one that can be loaded, or not in `dtype`.
            DistillkitError: when a file is damaged, refused or cannot be had.
            Interrupted: after a signal during a download.
        """

    def fresh(self, seed: int) -> Teacher:
        """A teacher of the same kind with random weights that depend on the seed alone; nothing of the weights is read.

        Raises:
            UsageError: where only loading tells what kind it is.
            DistillkitError: when its description is damaged.
        """
        if (spec := self.spec) is None:
            raise UsageError(f"what {self.name} is made of is known only when it is loaded")
        return fresh_teacher(spec, seed)

    def skeleton(self, reporter: Reporter) -> Teacher:
        """The teacher; with random weights where its own would have to be downloaded, which is enough for a plan.

        Raises:
            UsageError, DistillkitError: as `load`.
        """
        return self.load(reporter) if self.available else self.fresh(0)


@dataclass(frozen=True)
class Offered(Reference):
    """Offered by the hook `distillkit_teachers`: distillkit's own and plugins' alike."""

    name: str
    offer: Installed

    @property
    def card(self) -> Card | None:  # type: ignore[override]
        return self.offer.value.card if isinstance(self.offer.value, TeacherOffer) else None

    @property
    def available(self) -> bool:
        return not (self.card and self.card.url) or fetch.fetched(self.card) is not None

    @property
    def place(self) -> Path | None:
        return fetch.fetched(self.card) if self.card and self.card.url else None

    @property
    def download_bytes(self) -> int:
        return 0 if self.available or not self.card else self.card.weight_bytes * self.card.parameters

    def check(self) -> None:
        if self.card and self.card.url:
            fetch.check_offline(self.card)

    def fresh(self, seed: int) -> Teacher:
        offer = self.offer.value
        return offer.fresh(seed) if isinstance(offer, TeacherOffer) else super().fresh(seed)

    def load(
        self, reporter: Reporter, should_stop: Callable[[], int] = lambda: 0, dtype: torch.dtype = torch.float32
    ) -> Teacher:
        value = self.offer.value
        with blaming(f"the teacher {self.name}", self.offer.origin, "cannot be loaded"):
            teacher = value(reporter, should_stop) if isinstance(value, TeacherOffer) else value()
        if not isinstance(teacher, Teacher):
            found = type(teacher).__name__
            raise DistillkitError(f"the teacher {self.name} ({self.offer.origin}) is a {found}, not a Teacher")
        return in_dtype(teacher, dtype)


@dataclass(frozen=True)
class Folder(Reference):
    """A folder with `teacher.json` and `model.safetensors`, or a diffusers model."""

    name: str
    path: Path
    asked: PipelineConfig = PLAIN

    def with_options(self, asked: PipelineConfig) -> Reference:
        return super().with_options(asked) if (self.path / SPEC).is_file() else replace(self, asked=asked)

    @property
    def spec(self) -> TeacherSpec:
        if (self.path / SPEC).is_file():
            return read_spec(self.path / SPEC)
        if diffusers_folder.is_diffusers_folder(self.path):
            return diffusers_folder.describe(self.path, self.asked)
        raise UsageError(f"{self.path} is not a teacher folder: it has no {SPEC}, and no model of diffusers either")

    @property
    def preset_name(self) -> str:
        return self.spec.name

    @property
    def place(self) -> Path:
        return self.path

    def load(
        self, reporter: Reporter, should_stop: Callable[[], int] = lambda: 0, dtype: torch.dtype = torch.float32
    ) -> Teacher:
        if is_teacher_folder(self.path):
            return in_dtype(with_own_images(read_teacher(self.path / SPEC, self.path / WEIGHTS)), dtype)
        if (self.path / SPEC).is_file():
            raise UsageError(f"{self.path} is not a teacher folder: it has no {WEIGHTS}")
        teacher = diffusers_folder.read_teacher(self.path, self.spec, dtype)
        if teacher.conditioner.takes_text and (prompts := own_prompts(self.path)):
            teacher.conditioner = teacher.conditioner.with_prompts(prompts)
        return teacher


def with_own_images(teacher: Teacher) -> Teacher:
    """The teacher, with the data of the offered one whose name and kind of samples it has: it was trained anew."""
    offer = registry().named("teachers").get(teacher.spec.name)
    card = offer.value.card if offer and isinstance(offer.value, TeacherOffer) else None
    kind = {"shape", "conditioner", "codec"}
    if card and card.spec.model_dump(include=kind) == teacher.spec.model_dump(include=kind):
        return with_data(teacher, card)
    return teacher


@dataclass(frozen=True)
class File(Reference):
    """An EDM pickle, a `torch.save` file or a safetensors file: converted once, never executed. Weights that have to be
    told something are converted by `teachers convert`.

    Args:
        like: the card of the published teacher whose file it is by its name.
    """

    name: str
    path: Path
    like: Card | None

    @property
    def preset_name(self) -> str:
        return self.like.name if self.like else self.path.stem

    @property
    def place(self) -> Path:
        return self.path

    @property
    def folder(self) -> Path:
        """The cached teacher folder of this file's contents."""
        return fetch.teachers_folder() / f"{self.path.stem}-{sha256(self.path)[:16]}"

    def load(
        self, reporter: Reporter, should_stop: Callable[[], int] = lambda: 0, dtype: torch.dtype = torch.float32
    ) -> Teacher:
        folder = self.folder
        if not is_teacher_folder(folder):
            reporter.say(f"reading {self.path} (nothing in it is executed)")
            spec = self.like.spec if self.like else None
            convert(
                self.path, folder, name=self.preset_name, licence=spec.licence if spec else "", by_name=spec,
                say=reporter.say,
            )  # fmt: skip
        note_use(folder / SPEC)
        return in_dtype(read_teacher(folder / SPEC, folder / WEIGHTS), dtype)


@dataclass(frozen=True)
class Repository(Reference):
    """`hf:ORG/REPO[@REVISION]`: a teacher folder or a diffusers model on the hub."""

    name: str
    asked: PipelineConfig = PLAIN

    def with_options(self, asked: PipelineConfig) -> Reference:
        return replace(self, asked=asked)

    def folder(self, path: Path) -> Reference:
        """What it is once it is here.

        Raises:
            UsageError: where something was asked of it that it does not follow.
        """
        return Folder(self.name, path).with_options(self.asked)

    @property
    def spec(self) -> TeacherSpec | None:
        folder = hub.cached(self.name)
        return self.folder(folder).spec if folder else None

    @property
    def preset_name(self) -> str:
        return hub.parts(self.name)[0].rpartition("/")[2]

    @property
    def available(self) -> bool:
        return hub.cached(self.name) is not None

    @property
    def place(self) -> Path | None:
        return hub.cached(self.name)

    @property
    def download_bytes(self) -> int | None:
        return 0 if self.available else None

    def load(
        self, reporter: Reporter, should_stop: Callable[[], int] = lambda: 0, dtype: torch.dtype = torch.float32
    ) -> Teacher:
        return self.folder(hub.snapshot(self.name, dtype=dtype)).load(reporter, should_stop, dtype)

    def check(self) -> None:
        if offline() and not self.available:
            hub.snapshot(self.name)

    def fresh(self, seed: int) -> Teacher:
        """As ever, from the few kilobytes of the repository that describe it."""
        return self.folder(hub.snapshot(self.name, weights=False)).fresh(seed)
