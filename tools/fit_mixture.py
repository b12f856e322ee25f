"""`python tools/fit_mixture.py FOLDER`: fit the network that students of the embedded mixture start from to its exact
denoiser, and write it as a teacher folder. A minute on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from distillkit.contracts.condition import Condition
from distillkit.embedded.mixture.teacher import MODES, SPREAD, MixtureDenoiser, means, offer
from distillkit.models.store.folder import write_teacher
from distillkit.parts.score_matching import weighted_error
from distillkit.progress import reporter_for

STEPS, BATCH, LR = 10_000, 512, 2e-3


def main(folder: Path) -> None:
    """Fit to the exact denoiser of points at levels that are spread evenly in ln sigma."""
    teacher = offer().fresh(0)
    network, exact = teacher.copy_denoiser(), MixtureDenoiser(teacher.schedule)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    centres, generator = means().float(), torch.Generator().manual_seed(0)
    low, high = torch.tensor([teacher.schedule.t_min, teacher.schedule.t_max]).log()
    with reporter_for().task("fitting", STEPS, "steps") as task:
        for step in range(STEPS):
            mode = torch.randint(MODES, (BATCH,), generator=generator)
            x0 = centres[mode] + SPREAD * torch.randn(BATCH, 2, generator=generator)
            t = (low + (high - low) * torch.rand(BATCH, generator=generator)).exp()
            x = teacher.schedule.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
            wanted = exact(x, t, Condition())
            loss = weighted_error(network(x, t, Condition()), wanted, network.loss_weight(t))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            task.advance(1)
            if step % 100 == 0:
                task.note(f"loss {loss.item():.2e}")
    write_teacher(folder, network.state_dict(), teacher.spec)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
