"""What several methods share; part of the public API.

Denoising score matching and the gradients of score differences (DMD, DMD2, SiD), discriminators on a denoiser's
features, consistency models and their targets, the regression on noise-image pairs, and distances by name. The
mathematics below them, schedules, solvers and samplers, is in `distillkit.diffusion`.
"""

from distillkit.parts.clean import CLEAN, CleanSource
from distillkit.parts.consistency import CONSISTENCY_HEALTH, Neighbours, StepName, log_ends
from distillkit.parts.discriminator import (
    DiscriminatorHead,
    accuracy,
    discriminator_loss,
    generator_loss,
    head_for,
)
from distillkit.parts.distances import DistanceName, NamedDistance, distance_for
from distillkit.parts.perceptual import LPIPS
from distillkit.parts.regression import MOMENTS, Regression, log_moments
from distillkit.parts.score_difference import (
    FAKE_TO_REAL_ERROR,
    KL_GRADIENT_RMS,
    DistributionMatching,
    kl_gradient,
    log_errors,
    residual,
)
from distillkit.parts.score_matching import (
    LEVELS,
    FakeScore,
    Levels,
    denoising_loss,
    evenly_from,
    lognormal_levels,
    noise_levels,
    own_rate,
    weighted_error,
)
from distillkit.parts.targets import Target

__all__ = [
    "CLEAN",
    "CONSISTENCY_HEALTH",
    "FAKE_TO_REAL_ERROR",
    "KL_GRADIENT_RMS",
    "LEVELS",
    "LPIPS",
    "MOMENTS",
    "CleanSource",
    "DiscriminatorHead",
    "DistanceName",
    "DistributionMatching",
    "FakeScore",
    "Levels",
    "NamedDistance",
    "Neighbours",
    "Regression",
    "StepName",
    "Target",
    "accuracy",
    "denoising_loss",
    "discriminator_loss",
    "distance_for",
    "evenly_from",
    "generator_loss",
    "head_for",
    "kl_gradient",
    "log_ends",
    "log_errors",
    "log_moments",
    "lognormal_levels",
    "noise_levels",
    "own_rate",
    "residual",
    "weighted_error",
]
