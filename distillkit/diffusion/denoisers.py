"""Networks as denoisers: by what they predict, under any schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.schedule import Schedule, per_sample
from distillkit.diffusion.schedules import EDMSchedule

Prediction = Literal["epsilon", "v_prediction", "sample", "velocity"]
Arguments = Callable[[Condition], dict[str, Tensor]]


class PredictionDenoiser(Denoiser):
    """D from a network F(x_t, t, condition) that predicts the noise, v, the sample or a flow's velocity.

    epsilon: D = (x - sigma F) / alpha. v: D = alpha x - sigma F (Salimans & Ho 2022, appendix D). sample: D = F.
    velocity: D = x - t F, F = n - x0 on a flow's schedule.

    Args:
        model: F(x (B, ...), t (B,), condition) -> (B, ...).
        schedule: the schedule that it was trained with.
        prediction: what it predicts.

    Raises:
        ValueError: for predicted noise under a schedule that ends in pure noise, where it says nothing of x0.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, prediction: Prediction, *, sigma_data: float = 0.5
    ) -> None:
        super().__init__()
        if prediction == "epsilon" and getattr(schedule, "zero_terminal_snr", False):
            raise ValueError(
                "predicted noise says nothing of x0 where a schedule ends in pure noise (zero terminal SNR)"
            )
        self.model, self.schedule, self.prediction, self.sigma_data = model, schedule, prediction, sigma_data

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, t = x.to(dtype), t.to(dtype)
        out = self.model(x, t, condition).to(dtype)
        if self.prediction == "sample":
            return out
        alpha, sigma = per_sample(self.schedule.alpha(t), x), per_sample(self.schedule.sigma(t), x)
        if self.prediction == "epsilon":
            return (x - sigma * out) / alpha
        if self.prediction == "v_prediction":
            return alpha * x - sigma * out
        return x - sigma * out

    def loss_weight(self, t: Tensor) -> Tensor:
        """The plain loss of the prediction: alpha^2 / sigma^2 (epsilon), 1 / sigma^2 (v, velocity), 1 (sample)."""
        if self.prediction == "sample":
            return torch.ones_like(t)
        if self.prediction == "epsilon":
            return self.schedule.ratio(t) ** -2
        return self.schedule.sigma(t) ** -2


class EDMPreconditioning(Denoiser):
    """D(x; sigma, c) = c_skip x + c_out F(c_in x; c_noise, c), computed in float32 (or float64 inputs' dtype).

    c_skip = sd^2 / (sigma^2 + sd^2), c_out = sigma sd / sqrt(sigma^2 + sd^2),
    c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = ln(sigma) / 4 (Karras et al. 2022, Table 1, last column).

    Args:
        model: F(x, c_noise, one_hot_labels, augment) -> (B, ...); kept as `model`, the name that released state dicts
            use.
        label_dim: number of classes, 0 for an unconditional network. Label -1 becomes the all-zero vector.
        sigma_data: standard deviation of the data, in data units.
        schedule: smallest and largest noise level, and the grid.
    """

    schedule: EDMSchedule

    def __init__(
        self, model: nn.Module, *, label_dim: int = 0, sigma_data: float = 0.5, schedule: EDMSchedule | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.label_dim = label_dim
        self.sigma_data = sigma_data
        self.schedule = schedule or EDMSchedule()

    def forward(self, x: Tensor, t: Tensor, condition: Condition, augment: Tensor | None = None) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, level = x.to(dtype), t.to(dtype)
        s = per_sample(level, x)
        total = s.square() + self.sigma_data**2
        c_in, c_skip, c_out = total.rsqrt(), self.sigma_data**2 / total, s * self.sigma_data * total.rsqrt()
        raw = self.model(c_in * x, level.log() / 4, self.one_hot(condition, x), augment)
        return torch.addcmul(c_skip * x, c_out, raw.to(dtype))

    def loss_weight(self, t: Tensor) -> Tensor:
        """lambda = (sigma^2 + sd^2) / (sigma sd)^2 (Karras et al. 2022, Table 1)."""
        return t**-2 + self.sigma_data**-2

    def one_hot(self, condition: Condition, like: Tensor) -> Tensor | None:
        """(B, label_dim) vectors of the labels, as `one_hot` gives them."""
        return one_hot(condition, self.label_dim, like)


def one_hot(condition: Condition, classes: int, like: Tensor) -> Tensor | None:
    """(B, classes) vectors of the labels, of like's type; zero where there are none or -1; None for no classes."""
    if not classes:
        return None
    labels = condition.get("labels")
    if labels is None:
        return like.new_zeros(len(like), classes)
    # One column more, dropped again, turns -1 into the zero vector without a branch.
    return nn.functional.one_hot(labels.remainder(classes + 1), classes + 1)[:, :-1].to(like.dtype)
