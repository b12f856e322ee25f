"""Run by two processes of one job: running means are those of all samples."""

import sys

import torch
from accelerate import Accelerator

from distillkit_fdistill.divergences import WEIGHTS
from distillkit_fdistill.normalisation import Normalisation

accelerator = Accelerator(cpu=True)
ratio, share = torch.rand(8, generator=torch.Generator().manual_seed(0)) * 3 + 0.2, torch.arange(8) / 8
found = []
for part in (slice(accelerator.process_index * 4, accelerator.process_index * 4 + 4), slice(None)):
    normalisation = Normalisation(WEIGHTS["hellinger"], bins=2, decay=0.5, limits=(0.1, 20.0))
    for _ in range(2):
        normalisation(ratio[part], share[part])
        normalisation.update()
    found.append(normalisation.means)
# The second time both have all samples: the same means of twice as many.
torch.testing.assert_close(*found)
sys.stdout.write(f"done:{accelerator.process_index}\n")
