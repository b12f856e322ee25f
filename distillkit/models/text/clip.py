"""The text encoder of Stable Diffusion 1 and 2: the hidden states of one CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from pydantic import PrivateAttr

from distillkit.contracts.condition import Condition
from distillkit.contracts.text import TextEncoder
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.text.load import load_text_model, load_tokenizer, quietly


class ClipText(TextEncoder):
    """`text` (B, L, W): the last hidden states of CLIP for all L tokens, padding among them, which these models attend
    to. L is the tokenizer's limit (77), where longer prompts end.

    As `StableDiffusionPipeline.encode_prompt`; the null condition is the encoding of the empty prompt.
    """

    parts: PipelineParts

    _tokenizer: Any = PrivateAttr(None)
    _model: Any = PrivateAttr(None)
    _device: torch.device = PrivateAttr(default_factory=lambda: torch.device("cpu"))

    def encode(self, texts: Sequence[str]) -> Condition:
        model = self._loaded()
        tokens = self._tokenizer(
            list(texts), padding="max_length", max_length=self._tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        mask = tokens.attention_mask.to(self._device) if getattr(model.config, "use_attention_mask", False) else None
        return Condition(text=model(tokens.input_ids.to(self._device), attention_mask=mask)[0].float())

    def too_long(self, texts: Sequence[str]) -> list[int]:
        self._tokenizer = self._tokenizer or load_tokenizer(self.parts, "tokenizer")
        limit = self._tokenizer.model_max_length
        with quietly():
            return [k for k, ids in enumerate(self._tokenizer(list(texts)).input_ids) if len(ids) > limit]

    def _loaded(self) -> Any:
        self._tokenizer = self._tokenizer or load_tokenizer(self.parts, "tokenizer")
        if self._model is None:
            self._model = load_text_model(self.parts, "text_encoder", "CLIPTextModel", self._device)
        return self._model

    def to(self, device: torch.device | str) -> Self:
        self._device = torch.device(device)
        if self._model is not None:
            self._model.to(device)
        return self

    def release(self) -> None:
        self._model = None

    def hashed(self) -> Self:
        return self.model_copy(update={"parts": self.parts.hashed("tokenizer", "text_encoder")})
