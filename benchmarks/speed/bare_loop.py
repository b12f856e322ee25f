"""DMD's iteration written out, with nothing around it: what the engine is measured against."""

from __future__ import annotations

import torch

from distillkit import Condition, Pairs, Teacher
from distillkit.diffusion import l2
from distillkit.parts import denoising_loss, kl_gradient, noise_levels

KL_WEIGHT = 0.25


def adam(network: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the engine's defaults."""
    return torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.01, fused=True)


def apply(*updates: tuple[torch.nn.Module, torch.optim.Optimizer]) -> None:
    """Clip, step and forget the gradients."""
    for network, optimizer in updates:
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class Networks:
    """A student, an estimator of its score and the student's average, all copies of the teacher's network.

    Draws come from the global generator.
    """

    def __init__(self, teacher: Teacher, batch: int, device: torch.device) -> None:
        self.teacher, self.batch, self.device = teacher, batch, device
        self.student, self.fake, self.average = (teacher.copy_denoiser().to(device) for _ in range(3))
        self.average.requires_grad_(False)
        self.levels = noise_levels(teacher.schedule).to(device)

    def noise(self) -> torch.Tensor:
        """(B, ...) standard normal."""
        return torch.randn(self.batch, *self.teacher.spec.shape, device=self.device)

    def condition(self) -> Condition:
        """Of random keys."""
        conditioner = self.teacher.conditioner
        keys = torch.randint(max(conditioner.count, 1), (self.batch,), device=self.device)
        return conditioner.encode(keys).to(self.device)

    def level(self, low: int = 0, high: int = 1000) -> torch.Tensor:
        """Times (B,) of the grid's numbers from `low` up to `high`."""
        return self.levels[torch.randint(low, high, (self.batch,), device=self.device)]

    def generated(self, noise: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The one-step student's samples."""
        schedule = self.teacher.schedule
        t = torch.full((len(noise),), schedule.t_max, device=self.device)
        return self.student(schedule.start(noise, schedule.t_max), t, condition)

    def kl(self, x: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The KL objective on samples x (B, ...)."""
        with torch.no_grad():
            t = self.level(20, 981)
            noisy = self.teacher.schedule.add_noise(x, self.noise(), t)
            gradient = kl_gradient(x, self.teacher(noisy, t, condition), self.fake(noisy, t, condition))
        return KL_WEIGHT * 0.5 * (x - (x - gradient).detach()).square().mean()

    def follow(self) -> None:
        """Move the average towards the student."""
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.student.parameters()), 0.01)


class BareLoop(Networks):
    """The same operations as the engine's step of DMD, without logging, EMA apart from its update.

    Args:
        pairs: noise-image pairs, all of them on the device.
        joint: whether the student sees both of its batches in one pass.
    """

    def __init__(self, teacher: Teacher, pairs: Pairs, batch: int, device: torch.device, *, joint: bool = True) -> None:
        super().__init__(teacher, batch, device)
        self.pairs, self.joint = pairs, joint
        self.updates = [(network, adam(network)) for network in (self.student, self.fake)]

    def step(self) -> None:
        """One iteration."""
        rows = torch.randint(len(self.pairs.noise), (self.batch,), device=self.device)
        condition, paired = self.condition(), self.pairs.condition.select(rows)
        z, paired_z = self.noise(), self.pairs.noise[rows]
        if self.joint:
            both = self.generated(torch.cat([z, paired_z]), Condition.cat([condition, paired]))
            x, made = both.chunk(2)
        else:
            x, made = self.generated(z, condition), self.generated(paired_z, paired)
        (self.kl(x, condition) + l2(made, self.pairs.sample[rows]).mean()).backward()
        denoising_loss(self.fake, x.detach(), self.noise(), self.level(), condition).backward()
        apply(*self.updates)
        self.follow()
