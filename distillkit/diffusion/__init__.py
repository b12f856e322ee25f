"""Mathematics of diffusion models that methods are written with; part of the public API."""

from distillkit.contracts.schedule import Schedule, per_sample
from distillkit.diffusion.boundaries import (
    Boundary,
    DenoiserBoundary,
    KarrasBoundary,
    StepBoundary,
    boundary_for,
    consistency_function,
)
from distillkit.diffusion.denoisers import EDMPreconditioning, Prediction, PredictionDenoiser
from distillkit.diffusion.distances import Distance, huber, l1, l2, pseudo_huber
from distillkit.diffusion.samplers import ConsistencySampler, EulerSampler, Levels, RenoisingSampler
from distillkit.diffusion.schedules import (
    EDMSchedule,
    FlowSchedule,
    VPSchedule,
    karras_sigmas,
    lognormal_ratios,
    schedule_of,
)
from distillkit.diffusion.solvers import SOLVERS, denoised_from, euler, euler_step, heun, heun_step
from distillkit.diffusion.weightings import WEIGHTINGS, Weighting, WeightingName

__all__ = [
    "SOLVERS",
    "WEIGHTINGS",
    "Boundary",
    "ConsistencySampler",
    "DenoiserBoundary",
    "Distance",
    "EDMPreconditioning",
    "EDMSchedule",
    "EulerSampler",
    "FlowSchedule",
    "KarrasBoundary",
    "Levels",
    "Prediction",
    "PredictionDenoiser",
    "RenoisingSampler",
    "Schedule",
    "StepBoundary",
    "VPSchedule",
    "Weighting",
    "WeightingName",
    "boundary_for",
    "consistency_function",
    "denoised_from",
    "euler",
    "euler_step",
    "heun",
    "heun_step",
    "huber",
    "karras_sigmas",
    "l1",
    "l2",
    "lognormal_ratios",
    "per_sample",
    "pseudo_huber",
    "schedule_of",
]
