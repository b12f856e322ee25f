"""What several methods share; part of the public API.

Denoising score matching and the gradients of score differences (DMD, DMD2, SiD), GANs with discriminators on a
denoiser's features and R1, consistency models and their targets, derivatives along trajectories, the regression on
noise-image pairs, and distances by name. The mathematics below them, schedules, solvers and samplers, is in
`distillkit.diffusion`.
"""

from distillkit.parts.adversarial import GAN_DIAGNOSTICS, Adversarial, Discriminator, Gan
from distillkit.parts.clean import CLEAN, CleanSource, require_teacher_for_guidance
from distillkit.parts.consistency import CONSISTENCY_HEALTH, STD_TO_DATA, Neighbours, StepName, log_ends, log_spread
from distillkit.parts.critic import Critic, FeaturesOf, LatentDiscriminator, score_and_discriminator
from distillkit.parts.curriculum import (
    LOWEST,
    ShrinkingStep,
    StepWeightingName,
    lognormal_between,
    ratio_range,
    start_time,
    step_weight,
)
from distillkit.parts.discriminator import (
    GAN_LOSSES,
    DiscriminatorHead,
    GanLoss,
    GanLossName,
    PlaceHead,
    accuracy,
    discriminator_loss,
    generator_loss,
    head_for,
    hinge_discriminator_loss,
    hinge_generator_loss,
    place_head_for,
)
from distillkit.parts.distances import DistanceName, NamedDistance, distance_for
from distillkit.parts.gradient_penalty import R1, R1Name, finite_difference_penalty, gradient_penalty
from distillkit.parts.perceptual import LPIPS
from distillkit.parts.regression import MOMENTS, Regression, log_moments
from distillkit.parts.score_difference import (
    KL_GRADIENT_RMS,
    DistributionMatching,
    fake_error,
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
    times_between,
    uncertainty_weighted_error,
    weighted_error,
)
from distillkit.parts.tangents import TangentName, along, level_range
from distillkit.parts.targets import Target

__all__ = [
    "CLEAN",
    "CONSISTENCY_HEALTH",
    "GAN_DIAGNOSTICS",
    "GAN_LOSSES",
    "KL_GRADIENT_RMS",
    "LEVELS",
    "LOWEST",
    "LPIPS",
    "MOMENTS",
    "R1",
    "STD_TO_DATA",
    "Adversarial",
    "CleanSource",
    "Critic",
    "Discriminator",
    "DiscriminatorHead",
    "DistanceName",
    "DistributionMatching",
    "FakeScore",
    "FeaturesOf",
    "Gan",
    "GanLoss",
    "GanLossName",
    "LatentDiscriminator",
    "Levels",
    "NamedDistance",
    "Neighbours",
    "PlaceHead",
    "R1Name",
    "Regression",
    "ShrinkingStep",
    "StepName",
    "StepWeightingName",
    "TangentName",
    "Target",
    "accuracy",
    "along",
    "denoising_loss",
    "discriminator_loss",
    "distance_for",
    "evenly_from",
    "fake_error",
    "finite_difference_penalty",
    "generator_loss",
    "gradient_penalty",
    "head_for",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "kl_gradient",
    "level_range",
    "log_ends",
    "log_errors",
    "log_moments",
    "log_spread",
    "lognormal_between",
    "lognormal_levels",
    "noise_levels",
    "own_rate",
    "place_head_for",
    "ratio_range",
    "require_teacher_for_guidance",
    "residual",
    "score_and_discriminator",
    "start_time",
    "step_weight",
    "times_between",
    "uncertainty_weighted_error",
    "weighted_error",
]
