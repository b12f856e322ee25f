"""Denoisers of networks that diffusers trained: by what the network predicts, under its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import Prediction, PredictionDenoiser
from distillkit.diffusion.schedules import FlowSchedule, schedule_of
from distillkit.models.bounds import check_sigma_data

PREDICTIONS = {"edm": ("epsilon", "v_prediction"), "flow": ("velocity",), "vp": ("epsilon", "v_prediction", "sample")}
FLOW_TIMES = 1000.0
"""diffusers' networks take a flow's time in thousandths."""


def check_prediction(schedule: Mapping[str, Any], prediction: str) -> None:
    """Refuse a prediction that models of a schedule do not make.

    Raises:
        ValueError: naming those that they do.
    """
    if prediction not in (known := PREDICTIONS.get(str(schedule.get("kind")), PREDICTIONS["vp"])):
        raise ValueError(
            f"unknown prediction {prediction!r} of a {schedule.get('kind')} model; known: {', '.join(known)}"
        )


def predicting(
    model: nn.Module, schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 1.0
) -> Denoiser:
    """The denoiser of a model F(x, t, condition) on a vp or flow schedule.

    Args:
        schedule: {"kind": "vp" or "flow", ...}.
        prediction: epsilon, v_prediction or sample (vp); velocity (flow).
        sigma_data: standard deviation of the data; latents are scaled to 1.

    Raises:
        ValueError: for another schedule, or a prediction that it does not have.
    """
    check_sigma_data(sigma_data)
    check_prediction(schedule, prediction)
    if schedule.get("kind") == "edm":
        raise ValueError("EDM's preconditioning of networks with text or latents is not supported")
    return PredictionDenoiser(model, schedule_of(schedule), prediction, sigma_data=sigma_data)


def time_scale(schedule: Mapping[str, Any]) -> float:
    """What a schedule's times are multiplied with for a network of diffusers."""
    return FLOW_TIMES if isinstance(schedule_of(schedule), FlowSchedule) else 1.0
