"""What a diffusers scheduler's configuration says of a model: its noise schedule, and what it predicts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from distillkit.contracts.schedule import Schedule
from distillkit.diffusion.schedules import EDMSchedule, FlowSchedule, VPSchedule
from distillkit.errors import UsageError

VARIANCE_PRESERVING = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep",
        "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "UniPCMultistep", "DEISMultistep",
    )
)  # fmt: skip
EDM = frozenset({"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"})
FLOW = frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"})


@dataclass(frozen=True)
class Noise:
    """A model's schedule, what it predicts under it, and the standard deviation of its data."""

    schedule: Schedule
    prediction: str
    sigma_data: float = 0.5


def noise_of(scheduler: Mapping[str, Any], where: str) -> Noise:
    """The noise of a scheduler's configuration; what it leaves out is its class' default.

    Args:
        where: the configuration's path, for messages.

    Raises:
        UsageError: for a scheduler or an option that cannot be followed; names it.
    """
    kind = str(scheduler.get("_class_name") or "")
    readers = {**dict.fromkeys(VARIANCE_PRESERVING, _vp), **dict.fromkeys(EDM, _edm), **dict.fromkeys(FLOW, _flow)}
    if kind not in readers:
        raise UsageError(
            f"{where}: the scheduler {kind or 'without a class'} is not supported; known: {', '.join(sorted(readers))}"
        )
    try:
        return readers[kind]({**_defaults(kind), **scheduler}, where)
    except (ValidationError, TypeError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))} {first['input']!r}: {first['msg']}" if first else str(error)
        raise UsageError(f"{where}: {kind} cannot be followed: {what}") from error


def _vp(scheduler: Mapping[str, Any], where: str) -> Noise:
    if scheduler.get("trained_betas") is not None:
        raise UsageError(f"{where}: trained_betas are not supported")
    schedule = VPSchedule(
        steps=scheduler["num_train_timesteps"],
        betas=scheduler["beta_schedule"],
        beta_start=scheduler["beta_start"],
        beta_end=scheduler["beta_end"],
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr")),
        spacing=scheduler.get("timestep_spacing") or "leading",
        offset=scheduler.get("steps_offset") or 0,
        to_clean=bool(scheduler.get("set_alpha_to_one", True)),
    )
    prediction = str(scheduler.get("prediction_type", "epsilon"))
    if prediction == "epsilon" and schedule.zero_terminal_snr:
        raise UsageError(
            f"{where}: rescale_betas_zero_snr with prediction_type 'epsilon' cannot be followed: predicted noise says "
            "nothing of the sample where the schedule ends in pure noise"
        )
    return Noise(schedule, _known(prediction, ("epsilon", "v_prediction", "sample"), where))


def _edm(scheduler: Mapping[str, Any], where: str) -> Noise:
    schedule = EDMSchedule(
        sigma_min=scheduler["sigma_min"], sigma_max=scheduler["sigma_max"], rho=scheduler.get("rho", 7.0)
    )
    prediction = _known(str(scheduler["prediction_type"]), ("epsilon", "v_prediction"), where)
    return Noise(schedule, prediction, float(scheduler["sigma_data"]))


def _flow(scheduler: Mapping[str, Any], where: str) -> Noise:
    for option in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"):
        if scheduler.get(option):
            raise UsageError(f"{where}: {option} is not supported")
    return Noise(FlowSchedule(shift=scheduler["shift"]), "velocity")


def _known(prediction: str, known: tuple[str, ...], where: str) -> str:
    if prediction not in known:
        raise UsageError(f"{where}: unknown prediction_type {prediction!r}; known: {', '.join(known)}")
    return prediction


@cache
def _defaults(kind: str) -> Mapping[str, Any]:
    """What the scheduler's class takes where a configuration says nothing."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
