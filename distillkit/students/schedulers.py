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
from distillkit.diffusion.boundaries import Boundary, DenoiserBoundary, StepBoundary
from distillkit.diffusion.denoisers import PredictionDenoiser
from distillkit.diffusion.samplers import ConsistencySampler, EulerSampler, RenoisingSampler
from distillkit.diffusion.schedules import FlowSchedule, VPSchedule
from distillkit.errors import UsageError

NO_BOUNDARY = 1e6
"""LCMScheduler mixes the result with its input by c_skip = 1 / (4 (t timestep_scaling)^2 + 1): below any rounding."""
LCM_SIGMA_DATA = 0.5
"""LCMScheduler's own sigma_data, which no argument changes."""
OURS = "distillkit.load_student samples it"


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
    if type(sampler) not in (OneStep, RenoisingSampler, ConsistencySampler, EulerSampler):
        raise UsageError(
            f"no scheduler of diffusers samples as {type(sampler).__name__} does; OneStep, RenoisingSampler, "
            f"ConsistencySampler and EulerSampler have one. {OURS}"
        )
    boundary: Boundary = DenoiserBoundary()
    if isinstance(sampler, ConsistencySampler):
        boundary = sampler.boundary
        if sampler.clip:
            raise UsageError(f"the student's results are clipped, which no scheduler of diffusers does. {OURS}")
    times = sampler.times(student.schedule)
    if isinstance(denoiser.schedule, VPSchedule):
        if type(sampler) is EulerSampler:
            return _vp_steps(denoiser, denoiser.schedule, times)
        return _vp(denoiser, denoiser.schedule, times, boundary)
    if isinstance(denoiser.schedule, FlowSchedule):
        return _flow(times, boundary, deterministic=type(sampler) is EulerSampler)
    raise UsageError(f"no pipeline of diffusers samples on {type(denoiser.schedule).__name__}")


def _vp(denoiser: PredictionDenoiser, schedule: VPSchedule, times: Sequence[float], boundary: Boundary) -> Scheduler:
    """LCMScheduler for one evaluation or several with fresh noise; EulerDiscreteScheduler for one between two training
    steps, where LCMScheduler does not evaluate.

    Raises:
        UsageError: for several evaluations of which one is between two training steps, or another boundary.
    """
    if len(times) == 1 and times[0] != int(times[0]) and isinstance(boundary, DenoiserBoundary):
        config = _betas(schedule, schedule.steps - 1) | {
            "prediction_type": denoiser.prediction, "timestep_spacing": "leading", "steps_offset": 1,
        }  # fmt: skip
        # It interpolates ln(sigma / alpha) too, and ends at the clean sample.
        ratio = schedule.ratio(torch.tensor(times, dtype=torch.float64)).item()
        return Scheduler("EulerDiscreteScheduler", config, 1, {"sigmas": [ratio, 0.0]})
    whole = _whole(times)
    config = _betas(schedule, whole[0]) | {"prediction_type": denoiser.prediction, "steps_offset": 1}
    known = int(config["num_train_timesteps"])
    even = whole == _trailing(known, len(whole)) and known % len(whole) == 0
    config |= {
        # Of these it takes evenly spaced ones, and refuses a larger number.
        "original_inference_steps": len(whole) if even else known,
        "timestep_scaling": _timestep_scaling(boundary),
        "clip_sample": False,
    }
    return Scheduler("LCMScheduler", config, len(whole), {"timesteps": whole})


def _timestep_scaling(boundary: Boundary) -> float:
    """LCMScheduler's for a boundary: its scalings depend on k / sd alone, and its own sd is 0.5.

    Raises:
        UsageError: for one that it does not have.
    """
    if isinstance(boundary, DenoiserBoundary):
        return NO_BOUNDARY
    if isinstance(boundary, StepBoundary):
        return boundary.timestep_scaling * LCM_SIGMA_DATA / boundary.sigma_data
    raise UsageError(
        f"the consistency function has the boundary {type(boundary).__name__}, and LCMScheduler of diffusers that of "
        f"StepBoundary. {OURS}"
    )


def _vp_steps(denoiser: PredictionDenoiser, schedule: VPSchedule, times: Sequence[float]) -> Scheduler:
    """DDIMScheduler, or DPMSolverMultistepScheduler of first order, which is DDIM on any grid, for deterministic steps.

    Raises:
        UsageError: for times between two training steps, or an end that they do not have.
    """
    *evaluated, last = whole = _whole(times)
    config = _betas(schedule, whole[0]) | {"prediction_type": denoiser.prediction, "steps_offset": 1}
    known = int(config["num_train_timesteps"])
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
            f"takes the same first step. {OURS}"
        )
    config |= {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "sigma_min"}
    return Scheduler("DPMSolverMultistepScheduler", config, steps, {"timesteps": evaluated})


def _whole(times: Sequence[float]) -> list[int]:
    """Training steps as whole numbers.

    Raises:
        UsageError: for a time between two.
    """
    if strange := [t for t in times if t != int(t)]:
        raise UsageError(
            f"the student's time t = {strange[0]:g} is between two training steps, where diffusers has a scheduler for "
            f"one step alone, and none with a boundary. {OURS}; --student-times names training steps"
        )
    return [int(t) for t in times]


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


def _flow(times: Sequence[float], boundary: Boundary, *, deterministic: bool) -> Scheduler:
    """FlowMatchEulerDiscreteScheduler on the student's own times, which are not shifted again.

    Raises:
        UsageError: for steps that start or end elsewhere, or a boundary.
    """
    if times[0] != 1:
        raise UsageError(
            f"the student starts at t = {times[0]:g} with that share of the noise, and diffusers' flow pipelines with "
            f"pure noise at 1. {OURS}; --student-times 1 trains one that starts there"
        )
    if not isinstance(boundary, DenoiserBoundary):
        raise UsageError(
            f"the consistency function has the boundary {type(boundary).__name__}, and "
            f"FlowMatchEulerDiscreteScheduler of diffusers has none. {OURS}"
        )
    if deterministic:
        *times, last = times
        if last != 0:
            raise UsageError(
                f"the student's steps end at t = {last:g}, and those of FlowMatchEulerDiscreteScheduler always at 0. "
                f"{OURS}"
            )
    stochastic = len(times) > 1 and not deterministic
    config = {"num_train_timesteps": 1000, "shift": 1.0, "stochastic_sampling": stochastic}
    return Scheduler("FlowMatchEulerDiscreteScheduler", config, len(times), {"sigmas": list(times)})
