"""`python -m benchmarks.parallel_memory`: what each process holds, and holds at most, with networks whole and in parts.

DMD with four networks of 32 blocks of a million parameters each, on one, two and four CPU processes (gloo): the tensors
that a process holds (weights, gradients, moments), and the peak of its memory over what it had before, in sizes of one
network. The first peak is that of making and spreading the networks, of which the first process has the weights alone
where they are in parts, and the second that of two steps.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distillkit import Condition, Denoiser, Points, Teacher, TeacherSpec
from distillkit.diffusion import EDMSchedule
from distillkit.engine.config import TrainingConfig
from distillkit.engine.networks import Networks
from distillkit.engine.trainer import Trainer
from distillkit.environment import environment
from distillkit.parallel.choice import Asked, choose
from distillkit.parallel.copies import lazily
from distillkit.parallel.strategy import local_of
from distillkit.testing.setup import recipe_of, settings_of, synthetic_sources
from distillkit.testing.spread import Member
from distillkit_dmd.method import DMD

WIDTH, BLOCKS, BATCH, STEPS = 1024, 32, 8, 2
SETTINGS = {"distance": "l2", "regression_weight": 0}
CASES = (("replicate", 1), ("replicate", 2), ("shard", 2), ("replicate", 4), ("shard", 4))
CPU = torch.device("cpu")
M_MMAP_THRESHOLD = -3


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.nn.functional.silu(block(x))
        return x


class Large(Denoiser):
    def __init__(self) -> None:
        super().__init__()
        self.schedule, self.model = EDMSchedule(), Blocks()

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.model(x / (1 + t.float()[:, None]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    # What is imported on the way is no memory of networks.
    import distillkit.parallel.shard  # noqa: F401

    settings_of(DMD, SETTINGS)
    with lazily():
        torch.ones(1).clone()
    found = {f"{parallel} on {processes}": measured(parallel, processes) for parallel, processes in CASES}
    alone = found["replicate on 1"]
    for figures in found.values():
        for name in ("held", "peak of steps"):
            figures[f"{name}, of one process"] = round(figures[name] / alone[name], 3)
    result = {"unit": "sizes of one network", "parameters": BLOCKS * (WIDTH + 1) * WIDTH, "cases": found,
              "environment": environment()}  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measured(parallel: str, processes: int) -> dict[str, float]:
    """The largest figures among processes that are forked from this one."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        members = [
            context.Process(target=member, args=(parallel, rank, processes, Path(folder))) for rank in range(processes)
        ]
        for one in members:
            one.start()
        for one in members:
            one.join()
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    assert len(found) == processes
    # Whoever has the weights holds more than the others before the first step.
    largest = {name: round(max(one[name] for one in found), 3) for name in found[0]}
    others = sorted(one["peak of spreading"] for one in found)[:-1]
    return largest | ({"peak of spreading, of others": round(max(others), 3)} if others else {})


def member(parallel: Any, rank: int, processes: int, folder: Path) -> None:
    """One process: make and spread the networks, take two steps, and write what they took."""
    torch.set_num_threads(1)
    # Memory that is let go goes back at once, and so is not taken for memory in use.
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 65536)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=processes)
    before = memory_from_here()
    asked = Asked(parallel, processes, processes, CPU)
    strategy = choose(asked, lambda: 0)
    with torch.device("meta") if asked.spreads and rank else nullcontext():
        teacher = Teacher(Large(), TeacherSpec(name="large", shape=(WIDTH,)), codec=Points())
    one = sum(p.numel() * p.element_size() for p in teacher.denoiser.parameters())
    with lazily():
        recipe = recipe_of(DMD, teacher, SETTINGS, 0)
    networks = Networks.spread(recipe, teacher, strategy)
    gc.collect()
    spreading = peak() - before
    accelerator: Any = Member(rank, processes)
    trainer = Trainer(
        recipe, teacher, TrainingConfig(batch=BATCH, duration=100 * BATCH, channels_last="off"), seed=0,
        accelerator=accelerator, strategy=strategy, networks=networks, sources=synthetic_sources(teacher, recipe.needs),
    )  # fmt: skip
    memory_from_here()
    for _ in range(STEPS):
        trainer.train_step()
    stepping = peak() - before
    weights = [*teacher.denoiser.parameters(), *networks.parameters()]
    moments = [t for updater in trainer._updaters.values() for t in updater.state()[0].values()]
    gradients = [p for module in (trainer.student, *recipe.learners) for p in module.parameters()]
    held = sum(local_of(t).numel() * t.element_size() for t in (*weights, *moments, *gradients))
    figures = {"held": held / one, "peak of spreading": spreading / one, "peak of steps": stepping / one}
    (folder / f"{rank}.json").write_text(json.dumps(figures))


def memory_from_here() -> int:
    """Bytes that the process has in memory; peaks are counted from here on."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> int:
    """Most bytes that the process had in memory since."""
    return status("VmHWM")


def status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


if __name__ == "__main__":
    main()
