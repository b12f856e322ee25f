"""What a denoiser is told beside the noisy sample: class labels, text embeddings, masks, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Condition(Mapping[str, Tensor]):
    """Named tensors that share their first dimension, the batch; empty for an unconditional denoiser.

    A teacher and its network agree on the names: `Condition(labels=...)` with (B,) int64 class indices,
    or `Condition(text=..., mask=..., pooled=...)` with (B, T, D), (B, T), (B, D) for a text-to-image model.
    Methods only hand conditions through, slice them and concatenate them, so a new kind of condition needs
    no change to any method. A label of -1 is the null label (no class told), as guidance needs it.

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
        """Number of fields (not the batch size), so that `if condition:` asks whether anything is told."""
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Condition({', '.join(f'{name}={tuple(value.shape)}' for name, value in self.items())})"

    @property
    def labels(self) -> Tensor | None:
        """(B,) int64 class indices, or None where no class is told."""
        return self._fields.get("labels")

    def select(self, index: slice | Tensor) -> Condition:
        """The conditions at `index` along the batch."""
        return Condition(**{name: value[index] for name, value in self.items()})

    def to(self, device: torch.device | str) -> Condition:
        return Condition(**{name: value.to(device, non_blocking=True) for name, value in self.items()})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """One condition for the concatenated batch of `parts`, which must have the same fields."""
        return Condition(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
