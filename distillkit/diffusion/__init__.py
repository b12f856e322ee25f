"""Mathematics of diffusion models that methods are written with; part of the public API."""

from distillkit.diffusion.distances import Distance, l2, pseudo_huber
from distillkit.diffusion.preconditioning import EDMPreconditioning
from distillkit.diffusion.samplers import ConsistencySampler, EulerSampler, RenoisingSampler, consistency_function
from distillkit.diffusion.schedules import edm_loss_weight, karras_sigmas, lognormal_sigmas, score_matching_loss
from distillkit.diffusion.solvers import euler, heun
from distillkit.diffusion.variance_preserving import VariancePreserving, vp_sigmas
from distillkit.diffusion.weightings import WEIGHTINGS, Weighting, WeightingName

__all__ = [
    "WEIGHTINGS",
    "ConsistencySampler",
    "Distance",
    "EDMPreconditioning",
    "EulerSampler",
    "RenoisingSampler",
    "VariancePreserving",
    "Weighting",
    "WeightingName",
    "consistency_function",
    "edm_loss_weight",
    "euler",
    "heun",
    "karras_sigmas",
    "l2",
    "lognormal_sigmas",
    "pseudo_huber",
    "score_matching_loss",
    "vp_sigmas",
]
