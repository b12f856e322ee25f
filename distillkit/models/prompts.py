"""Conditions from text: prompts by number, encoded by frozen text encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Self

import torch
from pydantic import Field, PrivateAttr, SerializeAsAny, field_serializer, field_validator
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.text import PromptList, TextEncoder
from distillkit.dtypes import DTYPES
from distillkit.errors import DistillkitError, UsageError
from distillkit.registry import registry
from distillkit.text import printable, short

LONGEST = 100_000
"""Characters of a prompt."""
EXAMPLES = 60
"""Prompts of a list that a description carries."""

FEW = 64
"""Fields of fewer numbers, such as sizes in pixels, are not rounded."""

Prompt = Annotated[str, Field(max_length=LONGEST)]
Encodings = Callable[[Tensor], Condition]
"""Keys (B,) of a list on the CPU -> their conditions, made before."""


class Prompts(Conditioner):
    """Text. Key i is prompt i of a list; prompts that a person types are numbered after the list's.

    Args:
        encoder: of the texts.
        examples: the first prompts of the list that it was made for, which stand for it where the list is not at hand.
        listed: sha256 of that list.
    """

    encoder: SerializeAsAny[TextEncoder]
    examples: tuple[Prompt, ...] = Field(("",), min_length=1, max_length=10_000)
    listed: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="sha256 of the list of prompts")

    _texts: Sequence[str] | None = PrivateAttr(None)
    _typed: list[str] = PrivateAttr(default_factory=list)
    _numbers: dict[str, int] = PrivateAttr(default_factory=dict)
    _null: Condition | None = PrivateAttr(None)
    _encodings: Encodings | None = PrivateAttr(None)
    _rounding: str = PrivateAttr("fp32")
    _device: torch.device = PrivateAttr(default_factory=lambda: torch.device("cpu"))

    @field_validator("encoder", mode="before")
    @classmethod
    def _built(cls, value: Any) -> Any:
        return registry().build("encoders", value) if isinstance(value, Mapping) else value

    @field_serializer("encoder")
    def _described(self, encoder: TextEncoder) -> dict[str, Any]:
        kind = type(encoder)
        own = {"kind": f"{kind.__module__}:{kind.__qualname__}", **encoder.model_dump(mode="json")}
        return registry().describe("encoders", encoder) or own

    def with_prompts(self, prompts: PromptList) -> Self:
        if not len(prompts):
            raise UsageError(f"{prompts.name} holds no prompts")
        made = self.model_copy(update={"examples": tuple(prompts.texts[:EXAMPLES]), "listed": prompts.sha256})
        made._texts, made._typed, made._numbers, made._encodings = prompts.texts, [], {}, None
        return made

    def with_encodings(self, encodings: Encodings | None, null: Condition | None = None) -> Self:
        """The same, taking the conditions of its list from where they have been made before.

        Args:
            null: the null condition, one row, where it has been made too.
        """
        made = self.model_copy()
        made._encodings = encodings
        made._null = made._null if null is None else null.to(self._device)
        return made

    def with_rounding(self, rounding: str) -> Self:
        """The same, the conditions of its list rounded to "fp16", "bf16" or "fp32", as a store keeps them: they are the
        same whether they are stored or not. What a person types is not rounded."""
        made = self.model_copy()
        made._rounding = rounding
        return made

    @property
    def rounded_to(self) -> str:
        return "" if self._rounding == "fp32" else self._rounding

    @property
    def texts(self) -> Sequence[str]:
        """The list's prompts."""
        return self.examples if self._texts is None else self._texts

    @property
    def takes_text(self) -> bool:
        return True

    @property
    def lacks(self) -> str:
        if self._texts is not None:
            return ""
        return "prompts to train with: --prompts FILE (one a line), or hf:DATASET:COLUMN"

    @property
    def count(self) -> int:
        return len(self.texts)

    @property
    def has_null(self) -> bool:
        return self.encoder.has_null

    def text(self, key: int) -> str:
        """The prompt of that number."""
        listed = self.count
        return self.texts[key] if key < listed else self._typed[key - listed]

    def encode(self, keys: Tensor) -> Condition:
        numbers = keys.cpu()
        listed = numbers < self.count
        if (self._encodings is None and not self.rounded_to) or not listed.any():
            return self._made(numbers)
        if not listed.all():
            order = torch.cat([listed.nonzero(), listed.logical_not().nonzero()]).flatten().argsort()
            both = [self.encode(numbers[listed]), self._made(numbers[~listed])]
            return Condition.cat(both).select(order.to(self._device))
        stored = self.stored(numbers) if self._encodings is None else self._encodings(numbers).to(self._device)
        # They are kept in half precision, and computed with in what the networks have.
        return Condition(**{k: v.float() if v.is_floating_point() else v for k, v in stored.items()})

    def stored(self, keys: Tensor) -> Condition:
        """Conditions of the list's keys (B,) by the encoder, rounded as they are stored, in the dtype of that.

        Raises:
            DistillkitError: for one that is not finite, or not after rounding; names the prompt.
        """
        numbers, dtype = keys.cpu(), DTYPES[self._rounding]
        condition = self._made(numbers)
        many = {k for k, v in condition.items() if v.is_floating_point() and v[0].numel() >= FEW}
        made = {name: value.to(dtype) if name in many else value for name, value in condition.items()}
        for name, value in made.items():
            if value.is_floating_point() and not (finite := value.reshape(len(value), -1).isfinite().all(1)).all():
                place = int(finite.logical_not().nonzero()[0])
                wider = "; --prompts-dtype bf16 has a wider range" if condition[name][place].isfinite().all() else ""
                text = short(self.text(int(numbers[place])))
                raise DistillkitError(f"the encoding ({name}) of {text} is not finite in {self._rounding}{wider}")
        return Condition(**made)

    def _made(self, numbers: Tensor) -> Condition:
        # Every prompt once: batches repeat prompts, and encoders are large.
        unique, places = numbers.unique(return_inverse=True)
        return self._encoded([self.text(key) for key in unique.tolist()]).select(places.to(self._device))

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> Condition:
        return self.encoder.encode(texts).to(self._device)

    def null(self, condition: Condition) -> Condition:
        if self._null is None:
            with torch.no_grad():
                self._null = self.encoder.null().to(self._device)
        size, device = len(next(iter(condition.values()))), next(iter(condition.values())).device
        rows = {name: value.to(device).expand(size, *value.shape[1:]) for name, value in self._null.items()}
        return condition.extended(**rows)

    def agrees_with(self, other: Conditioner) -> bool:
        return isinstance(other, Prompts) and self.encoder.agrees_with(other.encoder)

    def parse(self, typed: Sequence[str]) -> Tensor:
        """Keys of prompts: numbers of those that are in the list's beginning, new numbers for others."""
        if not self._numbers:
            self._numbers.update({text: number for number, text in reversed(list(enumerate(self.examples)))})
        for text in typed:
            if len(text) > LONGEST:
                raise UsageError(
                    f"a prompt of {len(text):,} characters ({printable(text[:40])}...): at most {LONGEST:,}"
                )
            if text not in self._numbers:
                self._numbers[text] = self.count + len(self._typed)
                self._typed.append(text)
        return torch.tensor([self._numbers[text] for text in typed], dtype=torch.int64)

    def names(self, keys: Tensor) -> list[str]:
        return [self.text(key) for key in keys.tolist()]

    def captions(self, keys: Tensor) -> list[str]:
        return self.names(keys)

    def summary(self) -> str:
        return f"text, {self.count:,} prompts" if self._texts is not None else "text"

    def to(self, device: torch.device | str) -> Self:
        self._device = torch.device(device)
        self.encoder.to(device)
        self._null = None if self._null is None else self._null.to(device)
        return self

    def release(self) -> None:
        self.encoder.release()

    def hashed(self) -> Self:
        return self.model_copy(update={"encoder": self.encoder.hashed()})
