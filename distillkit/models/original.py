"""Weights in the layout of the program that trained them: what is read from their names and shapes, and what is not."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from distillkit.contracts.teacher import TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.reading import first_problem


class Unsettled(UsageError):
    """Weights that leave a setting of their network open, which nobody says."""


class WithoutNetwork(UsageError):
    """Weights that do not say which network they are for."""


@dataclass(frozen=True)
class Original:
    """A file's weights, and what else is known of them.

    Args:
        path: of the file, for messages.
        name: of the teacher that is made of them.
        state: the weights by their program's names.
        record: settings of the training that the file holds beside them; empty where it holds none.
        like: the facts of a teacher of the same program, whose settings count where the file says nothing.
        asked: settings by name, as they were typed; they win over all others.
    """

    path: Path
    name: str
    state: Mapping[str, Tensor]
    record: Mapping[str, Any] = field(default_factory=dict)
    like: TeacherSpec | None = None
    asked: Mapping[str, str] = field(default_factory=dict)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a weight.

        Raises:
            DistillkitError: when it is missing, of another rank, or empty.
        """
        if name not in self.state:
            raise DistillkitError(
                f"{self.path} lacks {name}, which all weights of its kind have: it is damaged or a part"
            )
        found = tuple(self.state[name].shape)
        if len(found) != rank or 0 in found:
            raise DistillkitError(f"{self.path}: {name} is of shape {found}, and {rank} dimensions are due")
        return found


@dataclass(frozen=True)
class Read:
    """What a layout makes of weights.

    Args:
        spec: the facts of the teacher.
        state: its weights by the names of its denoiser.
        notes: what was read, left out and assumed, a line each, for people.
    """

    spec: TeacherSpec
    state: dict[str, Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A program's way to name its weights.

    Args:
        signs: names that all its weights have.
        read: the teacher of such weights; refuses those of a network that is not followed, or a setting that is missing
            or none of theirs.
    """

    signs: tuple[str, ...]
    read: Callable[[Original], Read]


class Settings(BaseModel):
    """What weights do not say of their network."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)
Known = tuple[str, Mapping[str, Any]]
"""Where settings come from, for people, and the settings."""


def settled(kind: type[S], original: Original, known: Iterable[Known]) -> tuple[S, str]:
    """The settings of weights: those that were asked for, else the first that is known; and a line that says what was
    taken from where.

    Raises:
        UsageError: for a name that is no setting, a value that does not fit, or a setting that nobody says.
    """
    if unknown := sorted(original.asked.keys() - kind.model_fields.keys()):
        raise UsageError(
            f"--set {unknown[0]}: {original.path} has no such setting; known: {', '.join(kind.model_fields)}"
        )
    values, taken = dict[str, Any](original.asked), list[str]()
    for where, found in known:
        new = {name: value for name, value in found.items() if value is not None and name not in values}
        if new:
            taken.append(f"{', '.join(f'{name} {_plain(value)}' for name, value in new.items())} ({where})")
            values |= new
    try:
        settings = kind.model_validate(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else ""
        if error.errors()[0]["type"] == "missing":
            told = kind.model_fields[name].description
            how = f"distillkit teachers convert {shlex.quote(str(original.path))} --set {name}=..."
            raise Unsettled(f"{original.path} does not say the {told}: {how}") from error
        asked = "--set " if name in original.asked else ""
        raise UsageError(f"{original.path}: {asked}{first_problem(error)}") from error
    told = "`teachers convert --set NAME=VALUE` says otherwise"
    return settings, f"not in the weights: {'; '.join(taken)}. {told}" if taken else ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower()
