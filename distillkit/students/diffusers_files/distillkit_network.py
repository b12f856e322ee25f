"""A network of distillkit or a plugin as a model of diffusers. Needs distillkit: `pip install distillkit`."""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from distillkit import Condition, build_denoiser
from distillkit.diffusion import EDMPreconditioning


class DistillkitNetwork(ModelMixin, ConfigMixin):
    """F(x, t, class_labels) of a network that `description` builds."""

    @register_to_config
    def __init__(self, description):
        super().__init__()
        denoiser = build_denoiser(description)
        self.model = denoiser.model
        self.one_hot = denoiser.one_hot if isinstance(denoiser, EDMPreconditioning) else None

    def forward(self, sample, timestep, class_labels=None, return_dict=False):
        condition = Condition() if class_labels is None else Condition(labels=class_labels)
        seen = self.one_hot(condition, sample) if self.one_hot else condition
        return (self.model(sample, timestep, seen),)
