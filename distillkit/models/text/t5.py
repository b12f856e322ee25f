"""The text encoder of PixArt: T5 with a mask of the tokens that are no padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field

from distillkit.contracts.condition import Condition
from distillkit.models.text.frozen import T5, FrozenText, Tower


class T5Text(FrozenText):
    """`text` (B, L, W): T5's hidden states; `mask` (B, L): 1 for tokens that are no padding, 0 for the others, which
    these models do not attend to. Texts are in lower case, without white space at both ends.

    As `PixArtAlphaPipeline.encode_prompt` without the packages that its `clean_caption` needs. The null condition is
    the encoding of the empty prompt.

    Args:
        length: L; the pipelines' default is 120 (alpha) or 300 (sigma).
        resolution: height and width of the pictures in pixels, where the network embeds them, as `resolution` (B, 2)
            and their quotient `aspect_ratio` (B, 1).
    """

    length: int = Field(120, ge=1, le=4096)
    resolution: tuple[float, float] | None = None

    @property
    def towers(self) -> Mapping[str, Tower]:
        return {"t5": Tower("", T5, self.length)}

    def encode(self, texts: Sequence[str]) -> Condition:
        tower = self.towers["t5"]
        ids, mask = self.tokens(tower, [text.lower().strip() for text in texts])
        hidden = self.model(tower)(ids, attention_mask=mask)[0].float()
        found = Condition(text=hidden, mask=mask.float())
        if self.resolution is None:
            return found
        height, width = self.resolution
        sizes = torch.tensor([[height, width]], device=hidden.device).expand(len(texts), -1)
        return found.extended(resolution=sizes, aspect_ratio=sizes[:, :1] / sizes[:, 1:])
