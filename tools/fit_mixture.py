"""`python -m distillkit.runs.fit_mixture FOLDER`: fit the network that students of the embedded mixture start from to
its exact denoiser, and write it as a teacher folder. A minute on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from distillkit.contracts.condition import Condition
from distillkit.diffusion.schedules import score_matching_loss
from distillkit.progress import reporter_for
from distillkit.models.edm.catalog import MIXTURE
from distillkit.models.store.folder import write_teacher
from distillkit.embedded.mixture.teacher import MODES, SPREAD, MixtureDenoiser, means
from distillkit.jobs.teacher_recipe import fresh_teacher

STEPS, BATCH, LR = 10_000, 512, 2e-3


def main(folder: Path) -> None:
    spec, exact = MIXTURE.spec, MixtureDenoiser()
    network = fresh_teacher(spec, 0).copy_denoiser()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    centres, generator = means().float(), torch.Generator().manual_seed(0)
    low, high = torch.tensor([spec.sigma_min, spec.sigma_max]).log()
    with reporter_for().task("fitting", STEPS, "steps") as task:
        for step in range(STEPS):
            mode = torch.randint(MODES, (BATCH,), generator=generator)
            x = (centres[mode] + SPREAD * torch.randn(BATCH, 2, generator=generator))[:, :, None, None]
            sigma = (low + (high - low) * torch.rand(BATCH, generator=generator)).exp()
            noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
            wanted = exact(noisy, sigma, Condition())
            loss = score_matching_loss(network(noisy, sigma, Condition()), wanted, sigma, spec.sigma_data)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            task.advance(1)
            if step % 100 == 0:
                task.note(f"loss {loss.item():.2e}")
    write_teacher(folder, network.state_dict(), spec)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
