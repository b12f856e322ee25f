"""Adapters: few trained weights beside those of a network, which stay as they are and which several share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

WRAPPED = ".base_layer"
"""What peft puts into the names of the weights of a layer that has an adapter."""

Target = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.-]+$")]


class AdapterConfig(BaseModel):
    """LoRA: W x + (alpha / rank) B A x with trained B and A, B zero at first (Hu et al. 2021, arXiv 2106.09685, Eq. 3).

    Args:
        rank: of B A.
        alpha: numerator of the scale; the rank if none, which is a scale of one.
        targets: names of the layers, or what these end with (to_q); those that the network's family names if empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["lora"] = "lora"
    rank: int = Field(64, ge=1, le=4096)
    alpha: float | None = Field(None, gt=0, le=1e6)
    targets: tuple[Target, ...] = Field((), max_length=10_000)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def title(self) -> str:
        """For people: "lora of rank 64, alpha 128"."""
        return f"{self.kind} of rank {self.rank}" + ("" if self.alpha is None else f", alpha {self.alpha:g}")


class Base:
    """The weights of a network that copies of it have in common, frozen here. Whoever has it never copies, trains or
    saves them.

    Args:
        network: whose weights they are.
        sha256: by which they are known: of their file, or of their contents.
        number: of the copy, in the order in which copies were made.
    """

    def __init__(self, network: nn.Module, sha256: str, number: int = 0) -> None:
        network.requires_grad_(False)
        self.sha256, self.number = sha256, number
        self.parameters: Mapping[str, nn.Parameter] = dict(network.named_parameters(remove_duplicate=False))
        self.buffers: Mapping[str, Tensor] = dict(network.named_buffers(remove_duplicate=False))
        self._ids = frozenset(map(id, self.parameters.values()))

    def __contains__(self, parameter: object) -> bool:
        return id(parameter) in self._ids

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def dtype(self) -> str:
        """Of the weights: "float32", "bfloat16" or "float16"."""
        return str(next(iter(self.parameters.values())).dtype).removeprefix("torch.")

    @property
    def memo(self) -> dict[int, Tensor]:
        """For `copy.deepcopy`: each weight is its own copy."""
        return {id(tensor): tensor for tensor in (*self.parameters.values(), *self.buffers.values())}
