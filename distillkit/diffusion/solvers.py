"""Deterministic samplers of the probability-flow ODE, for every schedule.

In the coordinates y = s x, u of `Schedule.linear` the ODE is dy/du = (y - D) / u for all of them; there Euler's step is
DDIM with eta = 0 (Song et al. 2021, Eq. 14), and Heun's method is Karras et al. (2022), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from distillkit.contracts.schedule import SMALLEST_ALPHA, Schedule, per_sample

DenoiseAt = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> x0 with x (B, ...) and t (B,) in float32: a denoiser with its condition filled in."""

SolverName = Literal["heun", "euler", "ddim"]
LARGEST = 0.01 / SMALLEST_ALPHA
"""From larger u, which is pure noise, Heun's correction would multiply rounding errors: the step is Euler's."""


class Solver(Protocol):
    def __call__(self, denoise: DenoiseAt, noise: Tensor, times: Tensor, schedule: Schedule) -> Tensor: ...


def euler(
    denoise: DenoiseAt, noise: Tensor, times: Tensor, schedule: Schedule, *,
    to_clean: bool = True, start: Callable[[Tensor, float], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """First-order steps; one evaluation a step.

    Args:
        denoise: as in `heun`.
        noise: as in `heun`.
        times: (N,) descending.
        schedule: as in `heun`.
        to_clean: end with a step to the clean sample: N evaluations. Otherwise end at the last time: N - 1.
        start: (noise, t) -> x at the first time; the schedule's by default.

    Returns:
        (B, ...) float32.
    """
    y, ladder = _start(noise, times, schedule, start or schedule.start)
    for (t, s, u), (_, _, following) in pairwise(ladder if to_clean else ladder[:-1]):
        y = y + (following - u) * _slope(denoise, y, t, s, u)
    return (y if to_clean else y / ladder[-2][1]).float()


def heun(denoise: DenoiseAt, noise: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """Second-order steps; 2N - 1 evaluations.

    The state is kept in float64 (float32 on devices without it); the network sees float32. The step to the clean
    sample has no correction.

    Args:
        denoise: D(x, t).
        noise: standard normal (B, ...).
        times: (N,) descending, without the clean end.
        schedule: the denoiser's.

    Returns:
        Samples (B, ...), float32.
    """
    y, ladder = _start(noise, times, schedule, schedule.start)
    for (t, s, u), (t_next, s_next, following) in pairwise(ladder):
        d = _slope(denoise, y, t, s, u)
        y_next = y + (following - u) * d
        if following > 0 and u < LARGEST:
            d = (d + _slope(denoise, y_next, t_next, s_next, following)) / 2
            y_next = y + (following - u) * d
        y = y_next
    return y.float()


def ddim(denoise: DenoiseAt, noise: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """DDIM with eta = 0 (Song et al. 2021, Eq. 12): x at the next level has the sample and the noise that were
    predicted at this one. Euler's steps, but for where the family's own sampler lands (`Schedule.landings`).

    Args:
        denoise: as in `heun`.
        noise: as in `heun`.
        times: (N,) descending; N evaluations.
        schedule: as in `heun`.
    """
    dtype = torch.float32 if noise.device.type == "mps" else torch.float64
    x = schedule.start(noise.to(dtype), float(times[0]))
    landings = schedule.landings(times)
    alphas, sigmas = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    for t, alpha, sigma, (alpha_next, sigma_next) in zip(times.tolist(), alphas, sigmas, landings, strict=True):
        denoised = denoise(x.float(), torch.full((len(x),), t, device=x.device)).to(dtype)
        sample, removed = schedule.limited(denoised)
        x = alpha_next * sample + sigma_next * (x - alpha * removed) / sigma
    return x.float()


def family_euler(denoise: DenoiseAt, noise: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """Euler's steps from where the family's own sampler starts (`Schedule.euler_start`)."""
    return euler(denoise, noise, times, schedule, start=schedule.euler_start)


SOLVERS: Mapping[SolverName, Solver] = {"heun": heun, "euler": family_euler, "ddim": ddim}


def times_of(solver: SolverName, schedule: Schedule, steps: int) -> Tensor:
    """The times at which a solver asks the network; (steps,) float64, descending, without the clean end."""
    return schedule.euler_grid(steps) if solver == "euler" else schedule.grid(steps)


def solver_evaluations(solver: SolverName, steps: int) -> int:
    """Network evaluations of one unguided sample."""
    return 2 * steps - 1 if solver == "heun" else steps


def _start(
    noise: Tensor, times: Tensor, schedule: Schedule, start: Callable[[Tensor, float], Tensor]
) -> tuple[Tensor, list[tuple[float, float, float]]]:
    """The first y, and (t, s, u) of every time, the clean end last."""
    scales, places = schedule.linear(times)
    ladder = [*zip(times.tolist(), scales.tolist(), places.tolist(), strict=True), (0.0, 1.0, 0.0)]
    dtype = torch.float32 if noise.device.type == "mps" else torch.float64
    return start(noise.to(dtype), ladder[0][0]) * ladder[0][1], ladder


def _slope(denoise: DenoiseAt, y: Tensor, t: float, s: float, u: float) -> Tensor:
    x = y if s == 1.0 else y / s
    return (y - denoise(x.float(), torch.full((len(y),), t, device=y.device)).to(y.dtype)) / u


def euler_step(schedule: Schedule, x: Tensor, denoised: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """x at t_next after one Euler (DDIM) step from x (B, ...) at t, with its denoised x0; t, t_next (B,)."""
    (s, u), (s_next, u_next) = ([per_sample(v, x) for v in schedule.linear(level)] for level in (t, t_next))
    return _euler(s * x, denoised, u, u_next) / s_next


def _euler(y: Tensor, denoised: Tensor, u: Tensor, u_next: Tensor) -> Tensor:
    """y + (u' - u) (y - D) / u, in the form that stays exact in float32 where u is as large as 1e8 (pure noise)."""
    ratio = u_next / u
    return ratio * y + (1 - ratio) * denoised


def heun_step(denoise: DenoiseAt, schedule: Schedule, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """x at t_next after one Heun step from x (B, ...) at t; two evaluations. t, t_next (B,)."""
    (s, u), (s_next, u_next) = ([per_sample(v, x) for v in schedule.linear(level)] for level in (t, t_next))
    y, denoised = s * x, denoise(x, t)
    d = (y - denoised) / u
    y_euler = _euler(y, denoised, u, u_next)
    d_next = (y_euler - denoise(y_euler / s_next, t_next)) / u_next
    return torch.where(u < LARGEST, y + (u_next - u) * (d + d_next) / 2, y_euler) / s_next


def denoised_from(schedule: Schedule, x: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """The x0 with which one Euler step leads from x (B, ...) at t to x_next at t_next; the inverse of `euler_step`."""
    (s, u), (s_next, u_next) = ([per_sample(v, x) for v in schedule.linear(level)] for level in (t, t_next))
    ratio = u_next / u
    return (s_next * x_next - ratio * s * x) / (1 - ratio)
