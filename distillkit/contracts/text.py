"""Text: lists of prompts, and the frozen encoders that make conditions of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict

from distillkit.contracts.condition import Condition


@dataclass(frozen=True)
class PromptList:
    """Prompts by number, such as the lines of a file.

    Args:
        texts: the prompts; number i is texts[i]. It may read from a file.
        name: of the list, for people.
        sha256: of all prompts in their order.
    """

    texts: Sequence[str]
    name: str
    sha256: str

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, texts: Sequence[str], name: str) -> Self:
        """The list of these texts."""
        return cls(texts, name, prompts_sha256(texts))


def prompts_sha256(texts: Iterable[str]) -> str:
    """The hash of prompts in their order: of each one's length in UTF-8 as 8 bytes (little-endian) and its bytes."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class TextEncoder(BaseModel, ABC):
    """The frozen text encoders of a model: texts -> the fields of a condition.

    Plain data like the conditioner that holds it; tokenizers and weights are loaded when the first text is encoded, and
    `release` frees them. An encoding depends on its text alone, never on what else is encoded with it. A plugin offers
    its own by the hook `distillkit_encoders`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Condition:
        """The conditions of texts, a batch of as many rows, on the device of `to`.

        Raises:
            DistillkitError: when its files are missing, damaged or not those that were recorded.
        """

    @property
    def has_null(self) -> bool:
        """Whether the model also predicts without a prompt."""
        return True

    def null(self) -> Condition:
        """One row: what the model sees where it predicts without a prompt. The encoding of the empty text by default;
        fields that it leaves out stay those of the prompt.

        Raises:
            UsageError: where it does not.
        """
        return self.encode([""])

    def agrees_with(self, other: TextEncoder) -> bool:
        """Whether encodings by the other one mean the same to this one's network; where files lie (`parts`) and in what
        type they are computed (`dtype`) is no matter."""
        apart = {"parts", "dtype"}
        return type(self) is type(other) and self.model_dump(exclude=apart) == other.model_dump(exclude=apart)

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """The numbers of the texts whose end the encoder does not read."""
        return []

    def to(self, device: torch.device | str) -> Self:
        """Encode on this device from now on; itself."""
        return self

    def release(self) -> None:
        """Free the memory of tokenizers and weights; they are loaded again when they are needed."""

    def hashed(self) -> Self:
        """The same with the hashes of all files that encodings depend on, as descriptions record them."""
        return self
