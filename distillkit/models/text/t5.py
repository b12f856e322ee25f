"""The text encoder of PixArt: T5 with a mask of the tokens that are no padding."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field

from distillkit.contracts.condition import Condition
from distillkit.models.text.frozen import T5, FrozenText, Tower


class T5Text(FrozenText):
    """`text` (B, L, W): T5's hidden states; `mask` (B, L): 1 for tokens that are no padding, 0 for the others, which
    these models do not attend to. The null condition is the encoding of the empty prompt.

    As `PixArtAlphaPipeline` and `PixArtSigmaPipeline` with their defaults, which clean captions: addresses, tags, names
    of files, long numbers, Chinese signs, repeated punctuation and the like are left out.

    Args:
        clean: texts are cleaned (`clean_caption`); else they are only in lower case, without white space at both ends.
        length: L; the pipelines' default is 120 (alpha) or 300 (sigma).
        resolution: height and width of the pictures in pixels, where the network embeds them, as `resolution` (B, 2)
            and their quotient `aspect_ratio` (B, 1).
    """

    clean: bool = True
    length: int = Field(120, ge=1, le=4096)
    resolution: tuple[float, float] | None = None

    @property
    def towers(self) -> Mapping[str, Tower]:
        return {"t5": Tower("", T5, self.length)}

    def prepared(self, texts: Sequence[str]) -> list[str]:
        from diffusers import PixArtAlphaPipeline

        # The cleaning is a method that reads nothing of its pipeline but the class.
        pipeline: Any = PixArtAlphaPipeline
        with warnings.catch_warnings():
            # Of captions that look like a file's name or an address.
            warnings.simplefilter("ignore")
            return list(pipeline._text_preprocessing(pipeline.__new__(pipeline), list(texts), clean_caption=self.clean))

    def encode(self, texts: Sequence[str]) -> Condition:
        tower = self.towers["t5"]
        ids, mask = self.tokens(tower, texts)
        hidden = self.model(tower)(ids, attention_mask=mask)[0].float()
        found = Condition(text=hidden, mask=mask.float())
        if self.resolution is None:
            return found
        height, width = self.resolution
        sizes = torch.tensor([[height, width]], device=hidden.device).expand(len(texts), -1)
        return found.extended(resolution=sizes, aspect_ratio=sizes[:, :1] / sizes[:, 1:])
