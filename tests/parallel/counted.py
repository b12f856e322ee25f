"""What two processes that share networks hold and send, against the formulas. A program of tests."""

import sys
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from distillkit.engine.config import TrainingConfig
from distillkit.engine.spreading import PassMeter, networks_of
from distillkit.engine.trainer import Trainer
from distillkit.models.store.resolve import resolve
from distillkit.parallel.choice import Asked, choose
from distillkit.parallel.expected import Passes, Spread, expected
from distillkit.parallel.strategy import local_of
from distillkit.testing.setup import recipe_of, synthetic_sources
from distillkit_dmd.method import DMD
from distillkit_dmd2.method import DMD2
from tests.parallel.small import CPU, RANK, WORLD, member

STEPS = 2


@contextmanager
def counted(sent):
    """Counts the bytes that this process sends to the other one."""
    places = ((DefaultAllGather, "__call__"), (DefaultReduceScatter, "__call__"), (dist, "all_reduce"))
    gather, scatter, reduce = (getattr(*place) for place in places)

    def gathering(self, output_tensor, input_tensor, *arguments, **options):
        sent["all_gather"] += input_tensor.numel() * input_tensor.element_size()
        return gather(self, output_tensor, input_tensor, *arguments, **options)

    def scattering(self, output_tensor, input_tensor, *arguments, **options):
        sent["reduce_scatter"] += output_tensor.numel() * output_tensor.element_size()
        return scatter(self, output_tensor, input_tensor, *arguments, **options)

    def reducing(tensor, *arguments, **options):
        sent["all_reduce"] += tensor.numel() * tensor.element_size()
        return reduce(tensor, *arguments, **options)

    for place, counting in zip(places, (gathering, scattering, reducing), strict=True):
        setattr(*place, counting)
    try:
        yield
    finally:
        for place, real in zip(places, (gather, scatter, reduce), strict=True):
            setattr(*place, real)


def bytes_of(tensors):
    return sum(local_of(t).numel() * t.element_size() for t in tensors)


def close(ours, theirs, what, rel=0.04):
    # Beside gradients go norms and flags, a few numbers each.
    assert abs(ours - theirs) <= rel * theirs + 100, (what, ours, theirs)


def compared(method, settings, precision, micro_batches):
    teacher = resolve("digits").fresh(0)
    recipe = recipe_of(method, teacher, settings, 0)
    config = TrainingConfig(
        batch=4 * micro_batches, batch_per_device=2, precision=precision, channels_last="off", duration=600
    )
    mixed = {"fp32": "no"}.get(precision, precision)
    trainer = Trainer(
        recipe, teacher, config, accelerator=member(mixed), seed=0, sources=synthetic_sources(teacher, recipe.needs),
        strategy=choose(Asked("shard", WORLD, WORLD, CPU, precision=precision), lambda: 0),
    )  # fmt: skip
    sent, meter = dict.fromkeys(("all_gather", "reduce_scatter", "all_reduce"), 0), PassMeter()
    with counted(sent), meter.watch(trainer.roles()):
        for _ in range(STEPS):
            trainer.train_step()
    one = STEPS * micro_batches
    passes = {role: Passes(found.forward / one, found.backward / one) for role, found in meter.counts.items()}
    found = expected(
        networks_of(trainer.networks, config, passes), Spread.of("shard", WORLD, WORLD), micro_batches=micro_batches
    )
    for name, value in sent.items():
        close(value / STEPS, getattr(found, name), (precision, micro_batches, name))
    parameters = [p for network in trainer.networks.all for p in network.parameters()]
    close(bytes_of({id(p): p for p in parameters}.values()), found.held.weights, "weights")
    states = [s for updater in trainer._updaters.values() for s in updater.optimizer.state.values()]
    close(bytes_of(v for s in states for k, v in s.items() if k != "step"), found.held.moments, "moments")


compared(DMD2, {"updates": 2, "gan_weight": 0.1, "critic_gan_weight": 0.1}, "fp32", 1)
compared(DMD, {"distance": "l2", "fake_updates": 2}, "bf16", 2)
sys.stdout.write(f"done:{RANK}\n")
