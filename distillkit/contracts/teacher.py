"""The Teacher role: a frozen denoiser with everything a method may want to know about it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.errors import UsageError


class TeacherSpec(BaseModel):
    """Facts about a teacher that do not change while it is used; stored with every student made from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="catalogue name or path")
    shape: tuple[int, int, int] = Field(description="sample shape (C, H, W)")
    num_classes: int = Field(0, ge=0, description="number of class labels; 0: unconditional")
    null_label: bool = Field(True, description="the network was trained with dropped labels too, as guidance needs")
    sigma_min: float = Field(0.002, gt=0, description="smallest noise level, in data units")
    sigma_max: float = Field(80.0, gt=0, description="largest noise level, in data units")
    sigma_data: float = Field(0.5, gt=0, description="standard deviation of the data")
    rho: float = Field(7.0, gt=0, description="exponent of the Karras noise-level grid")
    solver_steps: int = Field(18, ge=1, description="Heun steps of the deterministic sampler")
    network: dict[str, Any] = Field(description="network class name and its arguments")
    weights_sha256: str = Field("", description="sha256 of the weight file")
    licence: str = Field("", description="licence of the weights")
    source: str = Field("", description="where the weights come from")

    @property
    def is_image(self) -> bool:
        """Whether samples are images; samples of one place (C, 1, 1) are points of a space."""
        return self.shape[1:] != (1, 1)


class Teacher:
    """A frozen denoiser, its spec, its conditions, guidance and the way to pixels.

    Subclass it for latent or text-conditioned models: override `draw_condition`, `null_condition` and `decode`;
    methods use these alone and therefore never learn what kind of model they distil.
    """

    def __init__(self, denoiser: Denoiser, spec: TeacherSpec) -> None:
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.spec = spec

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition, guidance: float = 1.0) -> Tensor:
        """Denoise with classifier-free guidance: uncond + w (cond - uncond), w = `guidance` (Ho & Salimans 2022).

        w = 1 is the plain conditional model, at one network evaluation instead of two.

        Args:
            x: (B, C, H, W). sigma: (B,). condition: batch of B. guidance: w.
        """
        if guidance == 1.0 or not condition:
            return self.denoiser(x, sigma, condition)
        both = Condition.cat([self.null_condition(condition), condition])
        null, told = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return torch.lerp(null, told, guidance)

    def draw_condition(self, uniform: Tensor) -> Condition:
        """Conditions from (B,) uniforms in [0, 1): equally likely class labels."""
        if not self.spec.num_classes:
            return Condition()
        return Condition(labels=(uniform * self.spec.num_classes).long())

    def null_condition(self, condition: Condition) -> Condition:
        """The same batch with nothing told: label -1.

        Raises:
            UsageError: for a network that was never trained without labels.
        """
        if not self.spec.null_label:
            raise UsageError(
                f"the teacher {self.spec.name} was trained with labels only, so it has no unconditional prediction to "
                "guide against; use guidance 1"
            )
        return Condition(**{name: torch.full_like(value, -1) for name, value in condition.items()})

    def decode(self, x: Tensor) -> Tensor:
        """Samples (B, C, H, W) in [-1, 1] -> pixels (B, C, H, W) uint8, rounded half up in float32 as EDM does.

        Points (B, C, 1, 1) stay as they are.
        """
        if not self.spec.is_image:
            return x.float()
        return (x.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)

    def copy_denoiser(self) -> Denoiser:
        """A trainable copy of the teacher's denoiser, dropout off: where students and score estimators start."""
        return copy.deepcopy(self.denoiser).requires_grad_(True).eval()

    def to(self, device: torch.device | str) -> Teacher:
        self.denoiser.to(device)
        return self
