"""A small network that is awkward to share, and trainings of it on one process and on several."""

from types import SimpleNamespace

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from distillkit import Denoiser, Points, Teacher, TeacherSpec
from distillkit.diffusion import EDMSchedule
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.parallel.choice import Asked, choose
from distillkit.testing.setup import recipe_of, synthetic_sources

ACCELERATOR = Accelerator(cpu=True)
RANK, WORLD, CPU = ACCELERATOR.process_index, ACCELERATOR.num_processes, torch.device("cpu")
ALONE = SimpleNamespace(
    num_processes=1, process_index=0, is_main_process=True, device=CPU, mixed_precision="no",
    wait_for_everyone=lambda: None,
)  # fmt: skip


def member(mixed_precision):
    """This process as one of all, whatever the precision of `ACCELERATOR` is."""
    return SimpleNamespace(
        num_processes=WORLD, process_index=RANK, device=CPU, mixed_precision=mixed_precision, is_main_process=RANK == 0,
        reduce=ACCELERATOR.reduce, gather=ACCELERATOR.gather,
    )  # fmt: skip


class Uneven(nn.Module):
    """Blocks of 5 rows, which three processes cannot share evenly, and a scalar, which none can."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
        self.inner = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(1.0))

    @property
    def blocks(self):
        return list(self.inner)

    @property
    def bottleneck(self):
        return self.inner[1]

    def forward(self, x):
        x = self.first(x)
        for block in self.inner:
            x = torch.nn.functional.silu(block(x))
        return self.last(x) * self.scale


class Small(Denoiser):
    sigma_data = 0.5

    def __init__(self):
        super().__init__()
        self.schedule, self.model = EDMSchedule(), Uneven()

    def forward(self, x, t, condition):
        x = x.to(self.model.last.bias.dtype)
        level = t.to(x.dtype).log()[:, None] / 4
        return x / (1 + t.to(x.dtype)[:, None] ** 2) + 0.5 * self.model(torch.cat([x, level], 1))


def teacher(dtype=torch.float64):
    torch.manual_seed(0)
    denoiser = Small().to(dtype)
    return Teacher(denoiser, TeacherSpec(name="small", shape=(2,), solver_steps=4), codec=Points())


def strategy(parallel, **changes):
    """Of all processes; hybrid shares a network between two."""
    changes |= {"shard_size": 2} if parallel == "hybrid" else {}
    return choose(Asked(parallel, WORLD, WORLD, CPU, **changes), lambda: 0)


def trainer_of(method, settings, parallel=None, *, make=teacher, passes=1, accelerator=None, **changes):
    """A trainer of 12 samples a step; in this process alone where no way to spread networks is named.

    One process takes as many samples in a pass as each of several does: diagnostics are ratios of means over a pass.
    """
    whole, accelerator = make(), accelerator or (ALONE if parallel is None else ACCELERATOR)
    config = TrainingConfig(
        **{"batch": 12, "duration": 600, "lr": 1e-3, "ema_halflife": 100, "clip_grad_norm": 0.5, **changes},
        batch_per_device=12 // WORLD // passes, channels_last="off",
    )  # fmt: skip
    recipe = recipe_of(method, whole, settings, 0)
    return Trainer(
        recipe, whole, config, accelerator=accelerator, seed=0,
        strategy=strategy(parallel, precision=config.precision) if parallel else None,
        sources=synthetic_sources(whole, recipe.needs),
    )  # fmt: skip


def trained(trainer, steps):
    """The means of losses, diagnostics and norms over some steps."""
    for _ in range(steps):
        trainer.train_step()
    return trainer._means.read(trainer.accelerator)


def whole_weights(trainer):
    """Of every network, in every process."""
    return {
        f"{role}.{name}": value.full_tensor() if isinstance(value, DTensor) else value.clone()
        for role, module in trainer.networks.changed.items()
        for name, value in module.state_dict().items()
    }


def same(ours, theirs, what, rel=1e-6):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        close = torch.as_tensor(ours[name]).double(), torch.as_tensor(value).double()
        assert torch.allclose(*close, rtol=rel, atol=rel * 1e-3), (what, name, *close)


def compared(method, settings, parallels, steps, *, passes=1, rel=1e-6):
    """Train on one process and on all of them, and compare everything."""
    one = trainer_of(method, settings, passes=passes)
    start, losses = whole_weights(one), trained(one, steps)
    assert {"loss/", "grad_norm/"} <= {name.partition("/")[0] + "/" for name in losses}
    expected = whole_weights(one)
    still = [name for name, value in expected.items() if torch.equal(start[name], value)]
    assert not any(name.startswith("student.") for name in still), still
    for parallel in parallels:
        several = trainer_of(method, settings, parallel, passes=passes)
        its = trained(several, steps)
        if parallel != "replicate":
            assert all(isinstance(p, DTensor) == (p.ndim > 0) for p in several.ema.parameters()), "nothing is spread"
        same(its, losses, (method.name, parallel), rel)
        same(whole_weights(several), expected, (method.name, parallel), rel)
        assert several.cost.counts == one.cost.counts


def compared_on(make, method, settings):
    """Two steps on a float32 teacher in parts, against one process; returns the trainer."""
    # Where gradients are mere rounding, Adam's first updates are as large as elsewhere with the usual eps.
    one, several = (
        trainer_of(method, settings, way, make=make, eps=1e-3, clip_grad_norm=10.0) for way in (None, "shard")
    )
    same(trained(several, 2), trained(one, 2), method.name, 1e-3)
    found, expected = whole_weights(several), whole_weights(one)
    assert max((found[name] - value).abs().max() for name, value in expected.items()) < 1e-5
    return several
