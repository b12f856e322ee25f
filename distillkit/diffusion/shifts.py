"""How much of a flow's grid lies in the noise, by the size of its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ShiftBySize(BaseModel):
    """A flow's shift by the number of tokens of a sample, as Flux' sampler chooses it (`use_dynamic_shifting`).

    mu is linear in the tokens, from `low` at `few` tokens to `high` at `many`; the shift is exp(mu), or mu itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch: int = Field(2, ge=1, le=64, description="side of a token in a sample")
    few: int = Field(256, ge=1, le=2**31)
    many: int = Field(4096, ge=2, le=2**31)
    low: float = Field(0.5, ge=-10, le=10)
    high: float = Field(1.15, ge=-10, le=10)
    exponential: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.few >= self.many:
            raise ValueError(f"{self.few} tokens are not fewer than {self.many}")
        return self

    def shift(self, shape: Sequence[int]) -> float:
        """Of samples of this shape, (C, h, w)."""
        tokens = math.prod(side // self.patch for side in shape[1:])
        mu = self.low + (self.high - self.low) * (tokens - self.few) / (self.many - self.few)
        return math.exp(mu) if self.exponential else mu
