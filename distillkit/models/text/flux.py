"""The text encoders of Flux: T5 for every token, CLIP for the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field

from distillkit.contracts.condition import Condition
from distillkit.errors import UsageError
from distillkit.models.text.frozen import CLIP, T5, FrozenText, Tower


class FluxText(FrozenText):
    """`text` (B, L, W): T5's hidden states; `pooled` (B, P): CLIP's of the end of the text. Padding is attended to.

    As `FluxPipeline.encode_prompt`. The null condition is the encoding of the empty prompt. Networks with embedded
    guidance (FLUX.1-dev) take its weight as `guidance` (B,), and have no null condition: their outputs are guided
    already. Guiding them a second time is a decision, made by naming what they are to be guided away from.

    Args:
        length: L, the pipeline's default.
        guidance: the embedded weight; none for networks that embed none. 3.5 is the pipeline's default.
    """

    length: int = Field(512, ge=1, le=4096)
    guidance: float | None = Field(None, ge=0, le=1000)

    @property
    def towers(self) -> Mapping[str, Tower]:
        return {"clip": Tower("", CLIP), "t5": Tower("_2", T5, self.length)}

    @property
    def has_null(self) -> bool:
        return self.guidance is None

    def encode(self, texts: Sequence[str]) -> Condition:
        clip, t5 = self.towers["clip"], self.towers["t5"]
        pooled = self.model(clip)(self.tokens(clip, texts)[0]).pooler_output.float()
        text = self.model(t5)(self.tokens(t5, texts)[0])[0].float()
        found = Condition(text=text, pooled=pooled)
        if self.guidance is None:
            return found
        return found.extended(guidance=torch.full((len(texts),), self.guidance, device=text.device))

    def null(self) -> Condition:
        if self.guidance is not None:
            raise UsageError(
                f"this model's guidance is an input of its network ({self.guidance:g}, the condition's field "
                "`guidance`), and it has no unconditional prediction to guide against: use guidance 1. To guide it a "
                "second time against a prompt, name that prompt (negative=)"
            )
        return self.encode([""])
