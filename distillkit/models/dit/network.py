"""DiT's transformer (Peebles & Xie 2023, arXiv 2212.09748), and SiT's, which is the same one with a flow's time.

Parameter names and shapes are those of both programs, so that their state dicts load strictly. diffusers' class of the
name embeds time at other frequencies (10000^(-k / 127) for 10000^(-k / 128)) and once more in every block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import Prediction
from distillkit.models.bounds import DiTSizes, check
from distillkit.models.diffusers.predictions import predicting
from distillkit.models.edm.blocks import PositionalEmbedding, attention

FREQUENCIES = 256
"""Cosines and sines of the embedded time."""


class DiT(nn.Module):
    """F(x, t, condition): latents (B, C, h, w), t (B,), `labels` (B,) -> (B, C, h, w), in x's dtype.

    Label -1, or none at all, is the null label, the last of the table, where the network has one.

    Args:
        img_resolution: side of a latent.
        label_dim: number of classes.
        null_label: the table of labels has one more, for no condition.
        mlp_width: of the hidden layers between attentions.
    """

    casts_inputs = True
    adapter_targets = ("attn.qkv", "attn.proj")
    pos_embed: Tensor

    def __init__(
        self, img_resolution: int, patch_size: int, in_channels: int, hidden_size: int, depth: int, num_heads: int,
        label_dim: int, null_label: bool = True, mlp_width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.channels, self.rows = patch_size, in_channels, label_dim + null_label
        side = img_resolution // patch_size
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)})
        self.frequencies = PositionalEmbedding(FREQUENCIES)
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(self.rows, hidden_size)})
        self.register_buffer("pos_embed", sines_of_places(hidden_size, side)[None])
        self.blocks: Any = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_width or 4 * hidden_size) for _ in range(depth)
        )
        self.final_layer = Final(hidden_size, patch_size**2 * in_channels)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype = self.final_layer.linear.weight.dtype
        labels = condition.get("labels")
        labels = torch.full_like(t, -1, dtype=torch.int64) if labels is None else labels
        embedded = self.t_embedder["mlp"](self.frequencies(t).to(dtype))
        embedded = embedded + self.y_embedder["embedding_table"](labels.remainder(self.rows))
        tokens = self.x_embedder["proj"](x.to(dtype))
        height, width = tokens.shape[-2:]
        tokens = tokens.flatten(2).transpose(1, 2) + self.pos_embed.to(dtype)
        for block in self.blocks:
            tokens = block(tokens, embedded)
        out = self.final_layer(tokens, embedded).unflatten(1, (height, width))
        # (B, rows, columns, p x p places, C) -> (B, C, rows x p, columns x p)
        out = out.unflatten(3, (self.patch, self.patch, self.channels)).permute(0, 5, 1, 3, 2, 4)
        return out.flatten(4).flatten(2, 3).to(x.dtype)

    @property
    def units(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    @property
    def time_layers(self) -> Sequence[nn.Linear]:
        """The first layer of the embedded time."""
        mlp: Any = self.t_embedder["mlp"]
        return [mlp[0]]

    @property
    def bottleneck(self) -> nn.Module:
        """The block in the middle."""
        return self.blocks[(len(self.blocks) - 1) // 2]

    def feature(self, output: Any, x: Tensor) -> Tensor:
        """The tokens in a layer's output as a map (B, C, h / patch, w / patch), for latents x (B, C, h, w)."""
        height, width = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        if output.ndim != 3 or output.shape[1] != height * width:
            return output
        return output.transpose(1, 2).unflatten(2, (height, width))


class SiT(DiT):
    """The same with a flow's time t (B,), 1 for noise and 0 for data; F is the velocity n - x0.

    The network itself counts from noise, 0, to data, 1, and predicts the velocity of that time, x0 - n (Ma et al. 2024,
    Eq. 2 with alpha = 1 - t, sigma = t in our notation).
    """

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return -super().forward(x, 1 - t, condition)


class Block(nn.Module):
    """adaLN-Zero: (tokens (B, T, D), embedded time and label (B, D)) -> tokens."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads, self.gradient_checkpointing = heads, False
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp_width), "fc2": nn.Linear(mlp_width, width)})
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, tokens, embedded, use_reentrant=False)
        return self._forward(tokens, embedded)

    def _forward(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        given = self.adaLN_modulation(embedded)[:, None].chunk(6, dim=-1)
        shift, scale, gate = given[:3]
        tokens = tokens + gate * self._attended(modulated(tokens, shift, scale))
        shift, scale, gate = given[3:]
        hidden = F.gelu(self.mlp["fc1"](modulated(tokens, shift, scale)), approximate="tanh")
        return tokens + gate * self.mlp["fc2"](hidden)

    def _attended(self, tokens: Tensor) -> Tensor:
        parts = self.attn["qkv"](tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.attn["proj"](attention(*parts.unbind(0)).transpose(1, 2).flatten(2))


class Final(nn.Module):
    """(tokens (B, T, D), embedded (B, D)) -> (B, T, out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = modulation(width, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(embedded)[:, None].chunk(2, dim=-1)
        return self.linear(modulated(tokens, shift, scale))


def modulation(width: int, count: int) -> nn.Sequential:
    """(B, width) -> (B, count x width): shifts, scales and gates, all zero at first."""
    last = nn.Linear(width, count * width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.SiLU(), last)


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalised tokens (B, T, D), scaled and shifted by (B, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), 1 + scale)


def sines_of_places(width: int, side: int) -> Tensor:
    """(side^2, width): sines and cosines of the column in the first half, of the row in the second (He et al. 2021,
    arXiv 2111.06377)."""
    place = torch.arange(side, dtype=torch.float64)
    angle = place[:, None] * 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    column, row = line[None].expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return torch.cat([column, row], dim=2).flatten(0, 1).float()


def dit(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 1.0
) -> Denoiser:
    """A denoiser of DiT's transformer.

    Args:
        network: arguments of `DiT`.
        schedule: {"kind": "vp", ...}.
        prediction: epsilon, v_prediction or sample.
        sigma_data: standard deviation of the latents.

    Raises:
        ValueError: for a schedule or prediction that it does not have.
        TypeError: for arguments that it does not take.
    """
    if schedule.get("kind") != "vp":
        raise ValueError(f"DiT's networks have a schedule of kind vp, not {schedule.get('kind')}")
    check(DiTSizes, network)
    return predicting(DiT(**network), schedule, prediction, sigma_data)


def sit(network: Mapping[str, Any], schedule: Mapping[str, Any], sigma_data: float = 1.0) -> Denoiser:
    """A denoiser of SiT's transformer with the linear interpolant, which predicts the velocity.

    Args:
        network, sigma_data: as for `dit`.
        schedule: {"kind": "flow", ...}.

    Raises:
        ValueError, TypeError: as `dit`.
    """
    if schedule.get("kind") != "flow":
        raise ValueError(f"SiT's networks have a schedule of kind flow, not {schedule.get('kind')}")
    check(DiTSizes, network)
    return predicting(SiT(**network), schedule, "velocity", sigma_data)
