"""A network of distillkit as a model of diffusers. Needs distillkit: `pip install distillkit`."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from distillkit.models.build import build_denoiser


class EDMNetwork(ModelMixin, ConfigMixin):
    """F(x, t, class_labels) of a network that `description` builds."""

    @register_to_config
    def __init__(self, description):
        super().__init__()
        denoiser = build_denoiser(description)
        self.model, self.label_dim = denoiser.model, denoiser.label_dim

    def forward(self, sample, timestep, class_labels=None, return_dict=False):
        told = None
        if self.label_dim:
            told = F.one_hot(class_labels.long(), self.label_dim).to(sample.dtype)
        return (self.model(sample, timestep, told),)
