"""Networks of the variance-preserving convention as denoisers, by a change of variables.

They were trained on x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) n at integer steps t (Ho et al. 2020, arXiv 2006.11239).
With sigma_t = sqrt((1 - abar_t) / abar_t) that is (x0 + sigma_t n) / sqrt(1 + sigma_t^2), so one scaling of the input
and a table of t over sigma are all it takes (Karras et al. 2022, section 2 and appendix C).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "v_prediction", "sample"]


def vp_sigmas(
    steps: int, schedule: BetaSchedule, *, beta_start: float, beta_end: float, zero_terminal_snr: bool = False
) -> Tensor:
    """Noise levels sigma_t, t = 0 .. steps - 1, of a discrete schedule of betas; (steps,) float64, ascending.

    `linear` betas (Ho et al. 2020), `scaled_linear`: linear in their square roots (Rombach et al. 2022),
    `squaredcos_cap_v2`: the cosine schedule, betas at most 0.999 (Nichol & Dhariwal 2021). With
    `zero_terminal_snr` the signal is rescaled to vanish at the last step, whose sigma is then infinite
    (Lin et al. 2023, arXiv 2305.08891, Algorithm 1).
    """
    # The device is named, so that the table exists also where networks are built without memory.
    if schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64, device="cpu")
    elif schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64, device="cpu").square()
    else:
        level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        ratios = [min(1 - level[i + 1] / level[i], 0.999) for i in range(steps)]
        betas = torch.tensor(ratios, dtype=torch.float64, device="cpu")
    alphas_cumprod = (1 - betas).cumprod(0)
    if zero_terminal_snr:
        root = alphas_cumprod.sqrt()
        alphas_cumprod = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


class VariancePreserving(Denoiser):
    """D(x; sigma, c) from a network that sees x / sqrt(1 + sigma^2) and a step t.

    epsilon: D = x - sigma F. v: D = x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) F
    (Salimans & Ho 2022, appendix D). sample: D = F.

    Args:
        model: F(scaled x, t, labels) -> (B, C, H, W), with t (B,) float, labels (B,) int64 or None.
        sigmas: (T,) the noise level of every step, ascending; an infinite last one is left out. Between steps, t is
            interpolated linearly in log sigma; beyond the ends it stays.
        prediction: what the network predicts.
    """

    log_sigmas: Tensor

    def __init__(self, model: nn.Module, sigmas: Tensor, prediction: Prediction) -> None:
        super().__init__()
        self.model = model
        self.prediction = prediction
        self.register_buffer("log_sigmas", sigmas[sigmas.isfinite()].log().float(), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, s = x.to(dtype), sigma.to(dtype).reshape(-1, 1, 1, 1)
        c_in = (1 + s.square()).rsqrt()
        raw = self.model(c_in * x, self.timestep(sigma), condition.labels).to(dtype)
        if self.prediction == "epsilon":
            return x - s * raw
        if self.prediction == "v_prediction":
            return c_in.square() * x - s * c_in * raw
        return raw

    def timestep(self, sigma: Tensor) -> Tensor:
        """The step t, (B,) float32, whose noise level is sigma (B,)."""
        table, level = self.log_sigmas, sigma.log().to(self.log_sigmas.dtype)
        above = torch.searchsorted(table, level.contiguous()).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return (above - 1 + ((level - low) / (high - low)).clamp(0, 1)).float()
