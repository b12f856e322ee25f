"""The text encoder of Stable Diffusion 1 and 2: the hidden states of one CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distillkit.contracts.condition import Condition
from distillkit.models.text.frozen import CLIP, FrozenText, Tower


class ClipText(FrozenText):
    """`text` (B, L, W): the last hidden states of CLIP for all L tokens, padding among them, which these models attend
    to. L is the tokenizer's limit (77), where longer prompts end.

    As `StableDiffusionPipeline.encode_prompt`; the null condition is the encoding of the empty prompt.
    """

    @property
    def towers(self) -> Mapping[str, Tower]:
        return {"clip": Tower("", CLIP)}

    def encode(self, texts: Sequence[str]) -> Condition:
        tower = self.towers["clip"]
        model, (ids, mask) = self.model(tower), self.tokens(tower, texts)
        seen = mask if getattr(model.config, "use_attention_mask", False) else None
        return Condition(text=model(ids, attention_mask=seen)[0].float())
