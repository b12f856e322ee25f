"""What a diffusers scheduler's configuration says of a model: its noise schedule, and what it predicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from pydantic import ValidationError

from distillkit.contracts.schedule import SMALLEST_ALPHA, Schedule
from distillkit.diffusion.schedules import EDMSchedule, FlowSchedule, VPSchedule
from distillkit.diffusion.shifts import ShiftBySize
from distillkit.errors import UsageError
from distillkit.text import short

VARIANCE_PRESERVING = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep",
        "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "UniPCMultistep", "DEISMultistep",
    )
)  # fmt: skip
EDM = frozenset({"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"})
FLOW = frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"})
CLIPPING = frozenset(f"{name}Scheduler" for name in ("DDPM", "DDIM", "DDPMParallel", "DDIMParallel"))
"""Those that keep the predicted sample in a range, unless they are told not to."""
FLOW_STEPS = 1000
"""Training steps of flows: diffusers' networks take their time in thousandths."""


@dataclass(frozen=True)
class Noise:
    """A model's schedule, what it predicts under it, and the standard deviation of its data."""

    schedule: Schedule
    prediction: str
    sigma_data: float = 0.5

    def sized(self, shape: Sequence[int]) -> Noise:
        """The same for samples of this shape, without the batch."""
        return replace(self, schedule=self.schedule.sized(shape))


@dataclass(frozen=True)
class Grid:
    """How a pipeline asks a flow's scheduler for its times.

    Args:
        own: for so many steps, from which the scheduler makes a grid of its own that ends at its last training step;
            otherwise the pipeline hands it even fractions.
        patch: side of a token, by whose number dynamic shifting goes; 0 where the pipeline does not tell.
    """

    own: bool = False
    patch: int = 0


def noise_of(scheduler: Mapping[str, Any], where: str, grid: Grid | None = None) -> Noise:
    """The noise of a scheduler's configuration; what it leaves out is its class' default.

    Args:
        where: the configuration's path, for messages.
        grid: how the pipeline asks for a flow's times.

    Raises:
        UsageError: for a scheduler or an option that cannot be followed; names it.
    """
    kind = str(scheduler.get("_class_name") or "")
    readers: dict[str, Callable[..., Noise]] = {
        **dict.fromkeys(VARIANCE_PRESERVING, _vp), **dict.fromkeys(EDM, _edm),
        **dict.fromkeys(FLOW, partial(_flow, grid or Grid())),
    }  # fmt: skip
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
    kind = str(scheduler.get("_class_name"))
    _only(
        scheduler, where,
        use_beta_sigmas=(False,), use_flow_sigmas=(False,), thresholding=(False,),
        **(EULERS_OWN if kind == "EulerDiscreteScheduler" else {}),
    )  # fmt: skip
    clipped = kind in CLIPPING and scheduler.get("clip_sample", True)
    schedule = VPSchedule(
        steps=scheduler["num_train_timesteps"],
        betas=scheduler["beta_schedule"],
        beta_start=scheduler["beta_start"],
        beta_end=scheduler["beta_end"],
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr")),
        spacing=scheduler.get("timestep_spacing") or "leading",
        offset=scheduler.get("steps_offset") or 0,
        to_clean=bool(scheduler.get("set_alpha_to_one", True)),
        last_alpha=EULERS_LAST_ALPHA if kind == "EulerDiscreteScheduler" else SMALLEST_ALPHA,
        clip=scheduler.get("clip_sample_range", 1.0) if clipped else 0.0,
        sigmas="karras" if scheduler.get("use_karras_sigmas")
        else "exponential" if scheduler.get("use_exponential_sigmas") else "even",
    )  # fmt: skip
    prediction = str(scheduler.get("prediction_type", "epsilon"))
    if prediction == "epsilon" and schedule.zero_terminal_snr:
        raise UsageError(
            f"{where}: rescale_betas_zero_snr with prediction_type 'epsilon' cannot be followed: predicted noise says "
            "nothing of the sample where the schedule ends in pure noise"
        )
    return Noise(schedule, _known("prediction_type", prediction, ("epsilon", "v_prediction", "sample"), where))


def _edm(scheduler: Mapping[str, Any], where: str) -> Noise:
    schedule = EDMSchedule(
        sigma_min=scheduler["sigma_min"], sigma_max=scheduler["sigma_max"], rho=scheduler.get("rho", 7.0)
    )
    prediction = _known("prediction_type", scheduler["prediction_type"], ("epsilon", "v_prediction"), where)
    return Noise(schedule, prediction, float(scheduler["sigma_data"]))


def _flow(grid: Grid, scheduler: Mapping[str, Any], where: str) -> Noise:
    off = ("invert_sigmas", "stochastic_sampling", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    _only(scheduler, where, **dict.fromkeys(off, (False,)))
    _only(scheduler, where, num_train_timesteps=(FLOW_STEPS,))
    by_size = None
    if dynamic := bool(scheduler.get("use_dynamic_shifting")):
        if not grid.patch:
            raise UsageError(f"{where}: use_dynamic_shifting is not supported for this kind of network")
        by_size = ShiftBySize(
            patch=grid.patch,
            few=scheduler.get("base_image_seq_len", 256),
            many=scheduler.get("max_image_seq_len", 4096),
            low=scheduler.get("base_shift", 0.5),
            high=scheduler.get("max_shift", 1.15),
            exponential=_known("time_shift_type", scheduler.get("time_shift_type", "exponential"),
                               ("exponential", "linear"), where) == "exponential",
        )  # fmt: skip
    shift, first = 1.0 if dynamic else float(scheduler["shift"]), 1 / FLOW_STEPS
    schedule = FlowSchedule(
        shift=shift,
        last=shift * first / (1 + (shift - 1) * first) if grid.own else None,
        terminal=scheduler.get("shift_terminal") or None,
        by_size=by_size,
    )
    return Noise(schedule, "velocity")


EULERS_OWN: Mapping[str, tuple[Any, ...]] = {
    "interpolation_type": ("linear",), "timestep_type": ("discrete",), "final_sigmas_type": ("zero",),
}  # fmt: skip
"""Options of EulerDiscreteScheduler, and the values that Euler's sampler follows."""
EULERS_LAST_ALPHA = 2.0**-12
"""alpha at its last step where the betas are rescaled to end in pure noise."""


def _only(scheduler: Mapping[str, Any], where: str, **options: tuple[Any, ...]) -> None:
    """Refuse options that are given another value than those that are followed."""
    for name, known in options.items():
        if (value := scheduler.get(name)) is not None and value not in known:
            raise UsageError(f"{where}: {name} {short(value)} is not supported; known: {', '.join(map(str, known))}")


def _known(option: str, value: Any, known: tuple[str, ...], where: str) -> str:
    if value not in known:
        raise UsageError(f"{where}: unknown {option} {short(value)}; known: {', '.join(known)}")
    return str(value)


@cache
def _defaults(kind: str) -> Mapping[str, Any]:
    """What the scheduler's class takes where a configuration says nothing."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
