"""DMD's iteration written out, with nothing around it: what the engine is measured against."""

from __future__ import annotations

import torch

from distillkit import Condition, Teacher
from distillkit.data.pairs import LoadedPairs
from distillkit.diffusion import karras_sigmas, l2, score_matching_loss
from distillkit_dmd.distribution_matching import kl_gradient


class BareLoop:
    """The same operations as the engine's step, from the global generator, without logging, EMA apart from its update.

    Args:
        joint: whether the student sees both of its batches in one pass.
    """

    def __init__(self, teacher: Teacher, pairs: LoadedPairs, batch: int, *, joint: bool = True) -> None:
        self.teacher, self.pairs, self.batch, self.joint = teacher, pairs, batch, joint
        self.student, self.fake, self.average = (teacher.copy_denoiser() for _ in range(3))
        self.average.requires_grad_(False)
        device = next(self.student.parameters()).device
        self.device = device
        shared = {"lr": 1e-5, "weight_decay": 0.01, "fused": True}
        self.student_optimizer = torch.optim.AdamW(self.student.parameters(), **shared)
        self.fake_optimizer = torch.optim.AdamW(self.fake.parameters(), **shared)
        self.sigmas = karras_sigmas(1000).flip(0).float().to(device)
        self.top = torch.full((2 * batch,), 80.0, device=device)

    def draw(self) -> torch.Tensor:
        return torch.randn(self.batch, *self.teacher.spec.shape, device=self.device)

    def step(self) -> None:
        batch = self.batch
        chosen = self.pairs.select(torch.randint(len(self.pairs), (batch,)))
        told = Condition()
        if self.teacher.spec.num_classes:
            told = Condition(labels=torch.randint(self.teacher.spec.num_classes, (batch,), device=self.device))
        z = self.draw()
        if self.joint:
            both = self.student(torch.cat([z, chosen.noise]) * 80, self.top, Condition.cat([told, chosen.condition]))
            x, made = both.chunk(2)
        else:
            x = self.student(z * 80, self.top[:batch], told)
            made = self.student(chosen.noise * 80, self.top[:batch], chosen.condition)
        with torch.no_grad():
            sigma = self.sigmas[torch.randint(20, 981, (batch,), device=self.device)]
            noisy = x + sigma.view(-1, 1, 1, 1) * self.draw()
            gradient = kl_gradient(x, self.teacher(noisy, sigma, told), self.fake(noisy, sigma, told))
        loss = 0.25 * 0.5 * (x - (x - gradient).detach()).square().mean() + l2(made, chosen.sample).mean()
        loss.backward()
        fixed = x.detach()
        sigma = self.sigmas[torch.randint(0, 1000, (batch,), device=self.device)]
        noisy = fixed + sigma.view(-1, 1, 1, 1) * self.draw()
        score_matching_loss(self.fake(noisy, sigma, told), fixed, sigma, self.teacher.spec.sigma_data).backward()
        for network, optimizer in ((self.student, self.student_optimizer), (self.fake, self.fake_optimizer)):
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.student.parameters()), 0.01)
