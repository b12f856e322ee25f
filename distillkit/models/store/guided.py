"""A teacher's name together with that of the network that guides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.models.store.card import Card
from distillkit.models.store.reference import Reference
from distillkit.progress import Reporter


@dataclass(frozen=True)
class Guided(Reference):
    """A teacher that another one guides.

    Args:
        teacher: that is guided.
        guide: that guidance leads away from.
    """

    teacher: Reference
    guide: Reference

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.teacher.name

    @property
    def card(self) -> Card | None:  # type: ignore[override]
        return self.teacher.card

    @property
    def unguided(self) -> Reference:
        return self.teacher

    @property
    def spec(self) -> TeacherSpec | None:
        return self.teacher.spec

    @property
    def preset_name(self) -> str:
        return self.teacher.preset_name

    @property
    def available(self) -> bool:
        return self.teacher.available and self.guide.available

    @property
    def absent(self) -> tuple[str, ...]:
        return (*self.teacher.absent, *self.guide.absent)

    @property
    def place(self) -> Path | None:
        return self.teacher.place

    @property
    def download_bytes(self) -> int | None:
        sizes = [self.teacher.download_bytes, self.guide.download_bytes]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def check(self) -> None:
        self.teacher.check()
        self.guide.check()

    def load(
        self, reporter: Reporter, should_stop: Callable[[], int] = lambda: 0, dtype: torch.dtype = torch.float32
    ) -> Teacher:
        teacher = self.teacher.load(reporter, should_stop, dtype)
        teacher = teacher.guided_by(self.guide.load(reporter, should_stop, dtype))
        if teacher.guide and teacher.guide.remark:
            reporter.say(teacher.guide.remark)
        return teacher

    def fresh(self, seed: int) -> Teacher:
        return self.teacher.fresh(seed).guided_by(self.guide.fresh(seed))

    def skeleton(self, reporter: Reporter) -> Teacher:
        return self.teacher.skeleton(reporter).guided_by(self.guide.skeleton(reporter))
