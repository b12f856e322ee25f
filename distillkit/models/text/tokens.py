"""Texts as their tokens alone, and texts that nobody reads: what trainings of a pipeline's parts see of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from distillkit.contracts.condition import Condition
from distillkit.contracts.text import TextEncoder
from distillkit.models.text.clip import ClipText


class ClipTokens(ClipText):
    """`tokens` (B, L) int64: what the text encoder of Stable Diffusion 1 and 2 reads; L is the tokenizer's limit."""

    def encode(self, texts: Sequence[str]) -> Condition:
        return Condition(tokens=self.tokens(self.towers["clip"], texts)[0])


class Unread(TextEncoder):
    """No field: an autoencoder is trained on pictures, whatever belongs to them."""

    def encode(self, texts: Sequence[str]) -> Condition:
        return Condition()
