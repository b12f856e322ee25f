"""Samplers as schedulers of diffusers: those that take the same steps, with nothing of distillkit's in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from distillkit.contracts.sampler import OneStep
from distillkit.contracts.schedule import SMALLEST_ALPHA
from distillkit.contracts.student import StudentGenerator
from distillkit.diffusion.denoisers import PredictionDenoiser
from distillkit.diffusion.samplers import EulerSampler, RenoisingSampler
from distillkit.diffusion.schedules import FlowSchedule, VPSchedule
from distillkit.errors import UsageError

NO_BOUNDARY = 1e6
"""LCMScheduler mixes the result with its input by c_skip = 1 / (4 (t timestep_scaling)^2 + 1): below any rounding."""


@dataclass(frozen=True)
class Scheduler:
    """A scheduler, and what a pipeline must be given so that it takes the student's steps.

    Args:
        name: the class in diffusers.
        config: its arguments.
        steps: the number of network evaluations.
        grid: the steps themselves, as `timesteps` or `sigmas` of the pipeline's call; empty where the scheduler only
            takes their number, which gives the same.
    """

    name: str
    config: Mapping[str, Any]
    steps: int
    grid: Mapping[str, Sequence[float]] = field(default_factory=dict)


def scheduler_of(student: StudentGenerator) -> Scheduler:
    """The scheduler of diffusers that samples a student as its own sampler does, on a vp or a flow schedule.

    Raises:
        UsageError: where there is none; says what is in the way.
    """
    denoiser, sampler = student.denoiser, student.sampler
    if type(denoiser) is not PredictionDenoiser:
        raise UsageError(f"a {type(denoiser).__name__} has no pipeline in diffusers; PredictionDenoiser has")
    if type(sampler) not in (OneStep, RenoisingSampler, EulerSampler):
        raise UsageError(
            f"no scheduler of diffusers samples as {type(sampler).__name__} does; OneStep, RenoisingSampler and "
            "EulerSampler have one. distillkit.load_student samples it"
        )
    times = sampler.times(student.schedule)
    if isinstance(denoiser.schedule, VPSchedule):
        return _vp(denoiser, denoiser.schedule, times, deterministic=type(sampler) is EulerSampler)
    if isinstance(denoiser.schedule, FlowSchedule):
        return _flow(times, deterministic=type(sampler) is EulerSampler)
    raise UsageError(f"no pipeline of diffusers samples on {type(denoiser.schedule).__name__}")


def _vp(
    denoiser: PredictionDenoiser, schedule: VPSchedule, times: Sequence[float], *, deterministic: bool
) -> Scheduler:
    """DDIMScheduler, or DPMSolverMultistepScheduler of first order, which is DDIM on any grid, for deterministic steps;
    LCMScheduler without its boundary for those with fresh noise.

    Raises:
        UsageError: for times between two training steps, or an end that they do not have.
    """
    if strange := [t for t in times if t != int(t)]:
        raise UsageError(
            f"the student is evaluated at t = {strange[0]:g}, between two training steps, where no scheduler of "
            "diffusers samples. distillkit.load_student samples it"
        )
    whole = [int(t) for t in times]
    config = _betas(schedule, whole[0]) | {"prediction_type": denoiser.prediction, "steps_offset": 1}
    known = int(config["num_train_timesteps"])
    if not deterministic:
        even = whole == _trailing(known, len(whole)) and known % len(whole) == 0
        config |= {
            # Of these it takes evenly spaced ones, and refuses a larger number.
            "original_inference_steps": len(whole) if even else known,
            "timestep_scaling": NO_BOUNDARY,
            "clip_sample": False,
        }
        return Scheduler("LCMScheduler", config, len(whole), {"timesteps": whole})
    *evaluated, last = whole
    if last != 0:
        raise UsageError(f"the student's steps end at t = {last}, and those of diffusers' schedulers at 0")
    steps, jump = len(evaluated), known // len(evaluated)
    if evaluated == _trailing(known, steps) and all(t - jump == following for t, following in pairwise(evaluated)):
        # `set_alpha_to_one` would end at the clean sample in the place of step 0.
        config |= {"set_alpha_to_one": False, "clip_sample": False, "timestep_spacing": "trailing"}
        return Scheduler("DDIMScheduler", config, steps)
    if schedule.zero_terminal_snr:
        raise UsageError(
            f"the student's steps {evaluated} are not evenly spaced, and with zero terminal SNR only DDIMScheduler "
            "takes the same first step. distillkit.load_student samples it"
        )
    config |= {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "sigma_min"}
    return Scheduler("DPMSolverMultistepScheduler", config, steps, {"timesteps": evaluated})


def _betas(schedule: VPSchedule, first: int) -> dict[str, Any]:
    """The betas of a schedule up to the step where the student starts, which is then the last that there is: a
    scheduler that starts at its last step starts where the student was trained."""
    plain_end = not schedule.zero_terminal_snr or schedule.last_alpha == SMALLEST_ALPHA
    if first == schedule.steps - 1 and plain_end:
        return {
            "num_train_timesteps": schedule.steps, "beta_schedule": schedule.betas,
            "beta_start": schedule.beta_start, "beta_end": schedule.beta_end,
            "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        }  # fmt: skip
    alphas = schedule.alpha(torch.arange(first + 1, dtype=torch.float64)).square()
    remaining = torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
    return {"num_train_timesteps": first + 1, "trained_betas": (1 - remaining).tolist()}


def _trailing(known: int, steps: int) -> list[int]:
    """Evenly spaced steps, the last training step first."""
    return [round(known - k * known / steps) - 1 for k in range(steps)]


def _flow(times: Sequence[float], *, deterministic: bool) -> Scheduler:
    """FlowMatchEulerDiscreteScheduler on the student's own times, which are not shifted again.

    Raises:
        UsageError: for steps that start or end elsewhere.
    """
    if times[0] != 1:
        raise UsageError(
            f"the student starts at t = {times[0]:g}, and diffusers' flow pipelines with pure noise at 1. "
            "distillkit.load_student samples it"
        )
    if deterministic:
        raise UsageError(
            f"the student's steps end at t = {times[-1]:g}, and those of FlowMatchEulerDiscreteScheduler always at 0. "
            "distillkit.load_student samples it"
        )
    config = {"num_train_timesteps": 1000, "shift": 1.0, "stochastic_sampling": len(times) > 1}
    return Scheduler("FlowMatchEulerDiscreteScheduler", config, len(times), {"sigmas": list(times)})
