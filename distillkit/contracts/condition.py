"""What a denoiser sees beside the noisy sample: class labels, text embeddings, masks, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from distillkit.contracts.schedule import per_sample


class Condition(Mapping[str, Tensor]):
    """Named tensors that share their first dimension, the batch; empty for an unconditional denoiser.

    Made by a teacher's `Conditioner` and by nothing else. Methods hand conditions through, slice and concatenate them,
    so a new kind of condition needs no change to any method.

    Raises:
        ValueError: when the fields disagree on the batch size.
    """

    def __init__(self, **fields: Tensor) -> None:
        sizes = {name: len(value) for name, value in fields.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"condition fields differ in batch size: {sizes}")
        self._fields = fields

    def __getitem__(self, name: str) -> Tensor:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        """Number of fields (not the batch size), so that `if condition:` asks whether there is any condition."""
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Condition({', '.join(f'{name}={tuple(value.shape)}' for name, value in self.items())})"

    def select(self, index: slice | Tensor) -> Condition:
        """The conditions at `index` along the batch."""
        return Condition(**{name: value[index] for name, value in self.items()})

    def extended(self, **fields: Tensor) -> Condition:
        """The same with more fields, or other values of some: a second time or a guidance weight as an input."""
        return Condition(**{**self._fields, **fields})

    def to(self, device: torch.device | str) -> Condition:
        """On another device; itself where it lies there already."""
        wanted = torch.device(device)
        if all(value.device == wanted for value in self.values()):
            return self
        return Condition(**{name: value.to(wanted, non_blocking=True) for name, value in self.items()})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """One condition for the concatenated batch of `parts`, which must have the same fields."""
        return Condition(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    @staticmethod
    def where(mask: Tensor, a: Condition, b: Condition) -> Condition:
        """a's rows where mask (B,) is true and b's elsewhere; both with the same fields."""
        return Condition(**{name: torch.where(per_sample(mask, a[name]), a[name], b[name]) for name in a})
