"""Methods: a name, a configuration and the recipe they make of a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from distillkit.contracts.recipe import Recipe
from distillkit.contracts.teacher import Teacher
from distillkit.counts import parse_numbers


class MethodConfig(BaseModel):
    """Base of every method's settings. Fields with descriptions and bounds become command-line options; lists and
    tuples are typed as "0.25,0.5"."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        several = str not in kinds and any(get_origin(kind) in (list, tuple) for kind in kinds)
        return parse_numbers(value) if several and isinstance(value, str) else value


@dataclass(frozen=True)
class Preset:
    """Settings that fit a teacher, between the defaults and what the user asks for.

    Args:
        name: shown to people.
        teachers: shell patterns of teacher names, such as "edm-cifar10-*".
        settings: values of the method's Config.
        training: values of the training configuration.
        pairs: values of the noise-image pair configuration.
        student: values of the student's configuration: where it starts.
        source: where the numbers come from: paper and table, or file of the authors' code; "untuned" where they have no
            source.
    """

    name: str
    teachers: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


class Method(ABC):
    """A way to distil a teacher. The class docstring's first paragraph is its description.

    Attributes:
        name: what people type.
        Config: its settings.
        presets: settings that fit known teachers.
        examples: settings beside the defaults that the conformance kit tries too: every documented option that changes
            what is trained.
        caution: what is known to go wrong with it, in one sentence; `distillkit methods` shows it.
    """

    name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    presets: ClassVar[Sequence[Preset]] = ()
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ()
    caution: ClassVar[str] = ""

    @abstractmethod
    def recipe(self, teacher: Teacher, config: Any) -> Recipe:
        """Student, objectives, learners and stages for this teacher; `config` is an instance of `Config`."""

    @classmethod
    def preset_for(cls, teacher_name: str) -> Preset | None:
        """The first preset whose patterns match the teacher's name."""
        for preset in cls.presets:
            if any(fnmatch(teacher_name, pattern) for pattern in preset.teachers):
                return preset
        return None

    @classmethod
    def summary(cls) -> str:
        """First paragraph of the class docstring, in one line."""
        return " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
