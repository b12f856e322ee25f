"""The text encoders of Stable Diffusion 3: two CLIPs side by side, and T5 behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field

from distillkit.contracts.condition import Condition
from distillkit.models.text.frozen import CLIP_PROJECTED, T5, FrozenText, Tower


class SD3Text(FrozenText):
    """`text` (B, L1 + L2, W): the last hidden states but one of both CLIPs side by side, filled up with zeros to the
    width of T5, and T5's hidden states behind them; `pooled` (B, P1 + P2): both CLIPs' projections of the text.

    As `StableDiffusion3Pipeline.encode_prompt`. Padding is attended to. The null condition is the encoding of the empty
    prompt.

    Args:
        width: W, the network's `joint_attention_dim`.
        length: L2, the pipeline's default.
        third: there is a T5; zeros stand for one that was left out.
    """

    width: int = Field(4096, ge=1, le=65_536)
    length: int = Field(256, ge=1, le=4096)
    third: bool = True

    @property
    def towers(self) -> Mapping[str, Tower]:
        clips = {"first": Tower("", CLIP_PROJECTED), "second": Tower("_2", CLIP_PROJECTED, like_first=True)}
        return {**clips, "third": Tower("_3", T5, self.length)} if self.third else clips

    def encode(self, texts: Sequence[str]) -> Condition:
        hidden, pooled = [], []
        for name in ("first", "second"):
            tower = self.towers[name]
            out = self.model(tower)(self.tokens(tower, texts)[0], output_hidden_states=True)
            hidden.append(out.hidden_states[-2].float())
            pooled.append(out[0].float())
        clips = torch.cat(hidden, -1)
        if self.third:
            tower = self.towers["third"]
            behind = self.model(tower)(self.tokens(tower, texts)[0])[0].float()
        else:
            behind = clips.new_zeros(len(texts), self.length, self.width)
        clips = F.pad(clips, (0, behind.shape[-1] - clips.shape[-1]))
        return Condition(text=torch.cat([clips, behind], 1), pooled=torch.cat(pooled, -1))
