"""Mathematics of diffusion models that methods are written with; part of the public API."""

from distillkit.diffusion.distances import Distance, l2, pseudo_huber
from distillkit.diffusion.preconditioning import EDMPreconditioning
from distillkit.diffusion.schedules import edm_loss_weight, karras_sigmas
from distillkit.diffusion.solvers import heun

__all__ = ["Distance", "EDMPreconditioning", "edm_loss_weight", "heun", "karras_sigmas", "l2", "pseudo_huber"]
