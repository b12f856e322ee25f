"""Attention layers of networks that were saved before diffusers renamed them (0.12)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def renamed_attention(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the present names, where a former name is given and the present one is expected."""
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        above, _, last = layer.rpartition(".")
        present = f"{above}.{FORMER.get(last, last)}.{kind}"
        if name not in expected and present in expected:
            # The oldest are convolutions of one pixel.
            renamed[present] = value.reshape(expected[present].shape) if value.dim() == 4 else value
        else:
            renamed[name] = value
    return renamed
