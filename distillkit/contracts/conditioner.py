"""Conditioners: the only makers of conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.text import PromptList
from distillkit.errors import UsageError
from distillkit.names import Name


class Conditioner(BaseModel, ABC):
    """From keys to conditions. Keys are (B,) int64: class numbers, numbers of prompts; stores keep keys, not encodings.

    Plain data, so that a teacher's and a student's description can carry it; what is heavy (a text encoder) is loaded
    when it is first needed. A plugin offers its own by the hook `distillkit_conditioners`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of keys: classes or prompts. 0 where there is nothing to choose."""

    @abstractmethod
    def encode(self, keys: Tensor) -> Condition:
        """Conditions for keys (B,) int64, on the keys' device or the encoder's."""

    def draw(self, uniform: Tensor) -> Tensor:
        """Keys (B,) int64 from uniforms (B,) in [0, 1), on the CPU: every key alike."""
        return (uniform * max(self.count, 1)).long()

    def in_turn(self, indices: Sequence[int] | range) -> Tensor:
        """Keys (B,) int64 that go round all keys: exactly balanced, whatever the batch or the number of processes."""
        return torch.tensor(list(indices), dtype=torch.int64) % max(self.count, 1)

    @property
    def has_null(self) -> bool:
        """Whether the model also predicts without a condition, as classifier-free guidance needs it."""
        return False

    def null(self, condition: Condition) -> Condition:
        """The same batch without a condition.

        Raises:
            UsageError: where the model has no unconditional prediction.
        """
        raise UsageError(
            "this teacher was trained with conditions only, so it has no unconditional prediction to guide against; "
            "use guidance 1, or name another network that guides it (--guide-with NAME)"
        )

    def agrees_with(self, other: Conditioner) -> bool:
        """Whether conditions that the other one encodes mean the same to this one's network."""
        return type(self) is type(other) and self == other

    def parse(self, typed: Sequence[str]) -> Tensor:
        """Keys (B,) int64 of what a person typed: class numbers or names, prompts.

        Raises:
            UsageError: for what is none of them.
        """
        raise UsageError("this model takes no conditions")

    def typed_in_turn(self, typed: Sequence[str], count: int) -> Tensor:
        """Keys (count,) int64 that go round what a person typed.

        Raises:
            UsageError: for nothing, or what is no key.
        """
        if not typed:
            raise UsageError("classes is empty: name at least one, or leave it out for all in turn")
        keys = self.parse(typed)
        return keys[torch.arange(count) % len(keys)]

    def names(self, keys: Tensor) -> list[str]:
        """What keys (B,) are called, for people; empty text where they have no names."""
        return [str(key) if self.count else "" for key in keys.tolist()]

    def captions(self, keys: Tensor) -> list[str]:
        """What belongs under pictures of keys (B,): prompts. Empty texts where that would say little."""
        return [""] * len(keys)

    def summary(self) -> str:
        """For people: '10 classes', 'text', 'none'."""
        return "none"

    @property
    def rounded_to(self) -> str:
        """What its conditions are rounded to in this run, which its description does not say; "" for nothing."""
        return ""

    @property
    def takes_text(self) -> bool:
        """Whether any text has a key, so that `parse` takes the captions of images."""
        return False

    @property
    def lacks(self) -> str:
        """What a training needs to be given before there are conditions to draw, for people; "" where nothing is."""
        return ""

    def with_prompts(self, prompts: PromptList) -> Self:
        """The same, its keys the numbers of these prompts.

        Raises:
            UsageError: where the model takes none.
        """
        raise UsageError(f"this model takes no prompts ({self.summary()}): leave --prompts out")

    def to(self, device: torch.device | str) -> Self:
        """Move what encodes to a device; itself where there is nothing to move."""
        return self

    def release(self) -> None:
        """Free the memory of encoders; they are loaded again when they are needed."""

    def hashed(self) -> Self:
        """The same with the hashes of all files that it depends on, as descriptions record them."""
        return self


class Unconditional(Conditioner):
    """No condition: there are no keys to choose from, and key 0 stands for nothing."""

    @property
    def count(self) -> int:
        return 0

    def encode(self, keys: Tensor) -> Condition:
        return Condition()


class ClassLabels(Conditioner):
    """Class labels: `Condition(labels=...)` with (B,) int64 class numbers; -1 is the null label."""

    classes: int = Field(ge=1, le=1_000_000, description="number of classes")
    null_label: bool = Field(True, description="the network was trained with dropped labels too, as guidance needs")
    class_names: tuple[Name, ...] = Field((), description="names of the classes, in order; empty where not known")

    @model_validator(mode="after")
    def _named_alike(self) -> Self:
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} names are given for {self.classes} classes")
        return self

    @property
    def count(self) -> int:
        return self.classes

    @property
    def has_null(self) -> bool:
        return self.null_label

    def encode(self, keys: Tensor) -> Condition:
        return Condition(labels=keys)

    def null(self, condition: Condition) -> Condition:
        if not self.null_label:
            return super().null(condition)
        return condition.extended(labels=torch.full_like(condition["labels"], -1))

    def agrees_with(self, other: Conditioner) -> bool:
        named = isinstance(other, ClassLabels) and {self.class_names, other.class_names} - {()}
        return isinstance(other, ClassLabels) and self.classes == other.classes and len(named or ()) < 2

    def parse(self, typed: Sequence[str]) -> Tensor:
        """Keys of class numbers, or of names where the classes have some."""
        return torch.tensor([self._key(text.strip()) for text in typed], dtype=torch.int64)

    def _key(self, text: str) -> int:
        if text in self.class_names:
            return self.class_names.index(text)
        if not text.isdecimal() or int(text) >= self.classes:
            names = f" or one of {', '.join(self.class_names[:12])}" if self.class_names else ""
            raise UsageError(f"{text!r} is not a class: write a number from 0 to {self.classes - 1}{names}")
        return int(text)

    def names(self, keys: Tensor) -> list[str]:
        return [self.class_names[key] if key < len(self.class_names) else str(key) for key in keys.tolist()]

    def summary(self) -> str:
        return f"{self.classes:,} classes"
