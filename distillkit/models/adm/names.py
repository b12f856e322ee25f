"""Names and forms of weights: distillkit's, which are EDM's, and guided-diffusion's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distillkit.models.adm.network import ADM
from distillkit.models.edm.blocks import UNetBlock

PARTS = {
    "norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0",
    "conv1": "out_layers.3", "skip": "skip_connection",
}  # fmt: skip
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}
AROUND = {"map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "out_norm": "out.0", "out_conv": "out.2"}
RESAMPLING = {"down": ".op", "up": ".conv"}
LABELS = ("map_label.weight", "label_emb.weight")
OF_PLACES = ("qkv.weight", "proj.weight")
"""Ends of the names of convolutions of one pixel, which are of one dimension there."""


def published_names(network: ADM) -> dict[str, str]:
    """Names of all weights of a network -> guided-diffusion's."""
    found = dict(AROUND)
    for index, (name, layer) in enumerate(network.enc.items()):
        found |= _within(f"enc.{name}", layer, f"input_blocks.{index}", 0)
    index, last = -1, ""
    for name, layer in network.dec.items():
        ours = f"dec.{name}"
        if name.endswith(("in0", "in1")):
            found |= _within(ours, layer, "middle_block", 0 if name.endswith("in0") else 2)
        elif name.endswith("up"):
            # It lies behind the block before it, and its attention.
            found |= _within(ours, layer, f"output_blocks.{index}", 2 if f"{last}.qkv" in found else 1)
        else:
            index, last = index + 1, ours
            found |= _within(ours, layer, f"output_blocks.{index}", 0)
    kinds = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in found.items() for kind in ("weight", "bias")}
    kinds |= dict([LABELS])
    return {name: kinds[name] for name, _ in network.named_parameters()}


def _within(ours: str, layer: nn.Module, theirs: str, place: int) -> dict[str, str]:
    """Names of the parts of one layer, which is number `place` of those that it lies among."""
    if not isinstance(layer, UNetBlock):
        return {ours: f"{theirs}.{place}{RESAMPLING.get(ours.rpartition('_')[2], '')}"}
    found = {f"{ours}.{own}": f"{theirs}.{place}.{part}" for own, part in PARTS.items()}
    if layer.heads:
        found |= {f"{ours}.{own}": f"{theirs}.{place + 1}.{part}" for own, part in ATTENTION.items()}
    return found


def published_form(name: str, weight: Tensor, variance: int) -> Tensor:
    """One of our weights, whose shape alone counts, in the published form, with so many channels of a variance."""
    if name == LABELS[0]:
        return weight.T
    if name.startswith("out_conv."):
        return torch.cat([weight, weight[:variance]])
    return weight.squeeze(-1) if name.endswith(OF_PLACES) else weight


def own_form(name: str, weight: Tensor, network: ADM, variance: int, *, new_order: bool) -> Tensor:
    """A published weight in our form, by our name, without what predicts a variance.

    Args:
        new_order: rows of queries, keys and values are each of all heads, and not of one head after the other.
    """
    if name == LABELS[0]:
        return weight.T.contiguous()
    if name.startswith("out_conv."):
        return weight[: len(weight) - variance].clone()
    block, _, rest = name.partition(".qkv.")
    if rest:
        heads = int(network.get_submodule(block).heads)  # type: ignore[arg-type]
        # Ours are (heads, channels, 3).
        parts = (3, heads, -1) if new_order else (heads, 3, -1)
        weight = weight.unflatten(0, parts).movedim(0 if new_order else 1, 2).flatten(0, 2)
    return weight[..., None].contiguous() if name.endswith(OF_PLACES) else weight.contiguous()
