"""The text encoders of Stable Diffusion XL: two CLIPs side by side, a pooled vector, and the sizes of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field

from distillkit.contracts.condition import Condition
from distillkit.models.text.frozen import CLIP, CLIP_PROJECTED, FrozenText, Tower


class SDXLText(FrozenText):
    """`text` (B, L, W1 + W2): the last hidden states but one of both CLIPs, side by side; `pooled` (B, P): the second's
    projection of the text; `sizes` (B, 6): height and width that a picture had, top and left of its crop, height and
    width that it has, in pixels (Podell et al. 2023, arXiv 2307.01952, section 2.2).

    As `StableDiffusionXLPipeline.encode_prompt`. The null condition keeps the sizes.

    Args:
        sizes: of the pictures, the same for all.
        zero_null: the null condition is zero (`force_zeros_for_empty_prompt`), not the encoding of the empty prompt.
        first: there is a first CLIP.
    """

    sizes: tuple[float, float, float, float, float, float]
    zero_null: bool = True
    first: bool = Field(True, description="some pipelines have the second CLIP alone")

    @property
    def towers(self) -> Mapping[str, Tower]:
        both = {"first": Tower("", CLIP), "second": Tower("_2", CLIP_PROJECTED)}
        return both if self.first else {"second": both["second"]}

    def encode(self, texts: Sequence[str]) -> Condition:
        hidden = []
        for tower in self.towers.values():
            out = self.model(tower)(self.tokens(tower, texts)[0], output_hidden_states=True)
            hidden.append(out.hidden_states[-2].float())
            pooled = out[0].float()
        sizes = torch.tensor([self.sizes], device=pooled.device).expand(len(texts), -1)
        return Condition(text=torch.cat(hidden, -1), pooled=pooled, sizes=sizes)

    def null(self) -> Condition:
        empty = self.encode([""])
        text, pooled = empty["text"], empty["pooled"]
        if self.zero_null:
            text, pooled = torch.zeros_like(text), torch.zeros_like(pooled)
        return Condition(text=text, pooled=pooled)
