"""Attention layers of diffusers: those that have adapters by default, and what they were called before 0.12."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers of attention, which LoRA is usual for (Hu et al. 2021, section 4.2)."""
PROJECTIONS_OF_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Their twins for the text, where it is attended together with the picture."""
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
