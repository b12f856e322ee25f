"""What the text encoders of all pipelines share: tokenizers and frozen networks, loaded when they are needed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import PrivateAttr
from torch import Tensor

from distillkit.contracts.text import TextEncoder
from distillkit.errors import DistillkitError
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.text.load import load_text_model, load_tokenizer, quietly

Precision = Literal["float32", "bfloat16", "float16"]
CLIP, CLIP_PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"


@dataclass(frozen=True)
class Tower:
    """A tokenizer and the network that reads its tokens.

    Args:
        number: of the components: "" for `tokenizer` and `text_encoder`, "_2" for the second pair.
        kind: class of transformers.
        length: tokens of a text, padding among them; 0 for the tokenizer's own limit.
        like_first: that limit is the first tokenizer's.
    """

    number: str
    kind: str
    length: int = 0
    like_first: bool = False

    @property
    def tokenizer(self) -> str:
        return f"tokenizer{self.number}"

    @property
    def encoder(self) -> str:
        return f"text_encoder{self.number}"


class FrozenText(TextEncoder):
    """Text encoders of a pipeline; a family says which towers there are, and what it makes of their outputs.

    Args:
        parts: of the pipeline that holds the towers.
        dtype: in which their weights are kept and computed; encodings are float32.
    """

    parts: PipelineParts
    dtype: Precision = "float32"

    _tokenizers: dict[str, Any] = PrivateAttr(default_factory=dict)
    _models: dict[str, Any] = PrivateAttr(default_factory=dict)
    _device: torch.device = PrivateAttr(default_factory=lambda: torch.device("cpu"))

    @property
    @abstractmethod
    def towers(self) -> Mapping[str, Tower]:
        """Its towers by name."""

    def prepared(self, texts: Sequence[str]) -> list[str]:
        """The texts as the towers read them."""
        return list(texts)

    def tokens(self, tower: Tower, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers of tokens (B, L) int64, and a mask (B, L) int64 of those that are no padding; longer texts end at
        L."""
        tokenizer = self._tokenizer(tower)
        with quietly():
            made = tokenizer(
                self.prepared(texts),
                padding="max_length",
                max_length=self._length(tower),
                truncation=True,
                return_tensors="pt",
            )
        return made.input_ids.to(self._device), made.attention_mask.to(self._device)

    def model(self, tower: Tower) -> Any:
        """The frozen network of a tower."""
        if tower.encoder not in self._models:
            dtype = getattr(torch, self.dtype)
            found: Any = load_text_model(self.parts, tower.encoder, tower.kind, self._device, dtype)
            if (known := len(self._tokenizer(tower))) > found.config.vocab_size:
                raise DistillkitError(
                    f"{self.parts.folder}: its {tower.tokenizer} knows {known:,} tokens, and its {tower.encoder} "
                    f"{found.config.vocab_size:,}: they do not belong together"
                )
            self._models[tower.encoder] = found
        return self._models[tower.encoder]

    def in_dtype(self, dtype: str) -> Self:
        """The same with its weights in another type."""
        made = self.model_copy(update={"dtype": dtype})
        made._models = {}
        return made

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Those of which no tower reads the end."""
        cut = [self._cut(tower, texts) for tower in self.towers.values()]
        return sorted(set.intersection(*cut))

    def to(self, device: torch.device | str) -> Self:
        self._device = torch.device(device)
        for model in self._models.values():
            model.to(device)
        return self

    def release(self) -> None:
        self._models.clear()
        self._tokenizers.clear()

    def hashed(self) -> Self:
        used = [part for tower in self.towers.values() for part in (tower.tokenizer, tower.encoder)]
        return self.model_copy(update={"parts": self.parts.hashed(*used, dtype=getattr(torch, self.dtype))})

    def _cut(self, tower: Tower, texts: Sequence[str]) -> set[int]:
        with quietly():
            whole = self._tokenizer(tower)(self.prepared(texts)).input_ids
        return {number for number, ids in enumerate(whole) if len(ids) > self._length(tower)}

    def _tokenizer(self, tower: Tower) -> Any:
        if (found := self._tokenizers.get(tower.tokenizer)) is None:
            found = self._tokenizers[tower.tokenizer] = load_tokenizer(self.parts, tower.tokenizer)
        return found

    def _length(self, tower: Tower) -> int:
        asked = next(iter(self.towers.values())) if tower.like_first else tower
        return asked.length or int(self._tokenizer(asked).model_max_length)
