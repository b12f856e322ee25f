"""EDM preconditioning: a raw network becomes a denoiser (Karras et al. 2022, Table 1, last column)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser


class EDMPreconditioning(Denoiser):
    """D(x; sigma, c) = c_skip x + c_out F(c_in x; c_noise, c), computed in float32 (or float64 inputs' dtype).

    c_skip = sd^2 / (sigma^2 + sd^2), c_out = sigma sd / sqrt(sigma^2 + sd^2),
    c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = ln(sigma) / 4.

    Args:
        model: F(x, c_noise, one_hot_labels, augment) -> (B, C, H, W); kept as `model`, the name that released
            state dicts use.
        label_dim: number of classes, 0 for an unconditional network. Label -1 becomes the all-zero vector.
        sigma_data: standard deviation of the data, in data units.
    """

    def __init__(self, model: nn.Module, *, label_dim: int = 0, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.model = model
        self.label_dim = label_dim
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition, augment: Tensor | None = None) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, level = x.to(dtype), sigma.to(dtype)
        s = level.reshape(-1, 1, 1, 1)
        total = s.square() + self.sigma_data**2
        c_in, c_skip, c_out = total.rsqrt(), self.sigma_data**2 / total, s * self.sigma_data * total.rsqrt()
        raw = self.model(c_in * x, level.log() / 4, self.one_hot(condition, x), augment)
        return torch.addcmul(c_skip * x, c_out, raw.to(dtype))

    def one_hot(self, condition: Condition, like: Tensor) -> Tensor | None:
        """(B, label_dim) vectors of the labels; all zero where none or -1 is told; None for unconditional networks."""
        if not self.label_dim:
            return None
        labels = condition.labels
        if labels is None:
            return like.new_zeros(len(like), self.label_dim)
        # One column more, dropped again, turns -1 into the zero vector without a branch.
        return F.one_hot(labels.remainder(self.label_dim + 1), self.label_dim + 1)[:, :-1].to(like.dtype)
