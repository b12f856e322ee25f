"""What a run would take on several devices, by formula: nothing is loaded, and no device is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch

from distillkit.contracts.recipe import Recipe
from distillkit.contracts.teacher import Teacher
from distillkit.counts import scaled
from distillkit.dtypes import DTYPES
from distillkit.engine.config import TrainingConfig
from distillkit.engine.networks import Networks
from distillkit.engine.spreading import activation_bytes, networks_of
from distillkit.errors import DistillkitError, UsageError
from distillkit.jobs.adapters import adapters_of
from distillkit.jobs.planned import Plan
from distillkit.jobs.recipe import recipe_of
from distillkit.jobs.spreading import asked_of
from distillkit.jobs.trial import StepPasses, passes_of
from distillkit.models.store.resolve import card_of, default_teacher, resolve
from distillkit.parallel.choice import group_size
from distillkit.parallel.expected import Expected, Network, Spread, StrategyName, Tensors, expected
from distillkit.registry import registry

Rows = list[tuple[str, str]]
META = torch.device("meta")
GIVEN = ("teacher", "guide")
"""Frozen networks that a training begins with."""
MACHINE = 8
"""Devices of a machine, where nothing else is said."""


def device_rows(plan: Plan, devices: int, machine: int | None = None) -> Rows:
    """What each of `devices` devices would hold and send under every strategy.

    Args:
        machine: devices of one machine, which share a network under hybrid; `--shard-size` or 8 if none.

    Raises:
        UsageError: for a batch that the devices cannot share, or groups under hybrid that they do not make.
        DistillkitError: for settings that the recipe cannot follow, or a teacher that only loading tells of.
    """
    training = plan.config.training
    if training.batch % devices:
        raise UsageError(f"--batch {training.batch} cannot be shared by --devices {devices}")
    teacher, recipe, networks, where = _described(plan)
    counted, counted_on = _passes(plan, teacher)
    local = training.batch // devices
    in_pass = min(training.batch_per_device or local, local)
    kept, why = _activations(teacher, training)
    machine = machine or training.shard_size or MACHINE
    sizes = [
        _lowered(one, plan.config.teacher_weights.dtype) for one in networks_of(networks, training, counted.by_role)
    ]
    passed = ", ".join(_passed(size) for size in sizes if size.passes.forward)
    graph = max(1.0, counted.graph)
    graphs = graph * in_pass * kept
    about = (
        f"{scaled(kept, 'B')} a sample through the student; graphs hold {graph:.2g} such passes of {in_pass} at most, "
        f"{scaled(graphs, 'B')}"
    )
    rows = [
        ("teacher", f"{teacher.spec.name}, samples {' x '.join(map(str, teacher.spec.shape))} ({where})"),
        ("student", f"{sum(p.numel() for p in recipe.student.parameters()):,} parameters"),
        *(("adapters", line.removeprefix("adapters: ")) for line in adapters_of(recipe)),
        ("networks", "; ".join(_network(size) for size in sizes)),
        ("passes", f"in a step of one micro-batch, counted on {counted_on}: {passed}"),
        ("activations", f"about {about}" if kept else why),
    ]
    asked = asked_of(training, plan.context, recipe, plan.config.teacher_weights.dtype)
    if training.parallel == "hybrid" or training.shard_size:
        group_size(replace(asked, processes=devices, local=machine))
    without = [option for option, given in (asked.others or {}).items() if given]
    for spread in _spreads(devices, machine):
        name = f"{spread.name} (asked for)" if training.parallel == spread.name else spread.name
        if spread.sharing > 1 and without:
            rows.append((name, f"not done with {', '.join(without)}"))
            continue
        here = [_offloaded(one) if training.offload_teacher and spread.sharing > 1 else one for one in sizes]
        found = expected(here, spread, micro_batches=-(-local // in_pass), activations=graphs)
        rows.append((name, _row(found, spread)))
    return [
        *rows, ("", "by formula, for each device: text encoders, the autoencoder while it decodes, and what a library "
                "keeps for itself come on top"), ("folder", f"{plan.folder.path} (nothing was written)"),
    ]  # fmt: skip


def _described(plan: Plan) -> tuple[Teacher, Recipe, Networks, str]:
    """Teacher and networks without weights."""
    teacher, where = plan.teacher, "at hand"
    if teacher is None:
        reference, where = resolve(plan.config.teacher, plan.config.pipeline), "by its description; nothing was loaded"
        with META:
            teacher = reference.fresh(0)
        # Adapters are of certain weights, which are known by their hash.
        teacher.spec = teacher.spec.model_copy(update={"weights_sha256": "0" * 64})
    recipe = recipe_of(plan.config, plan.method, teacher)
    networks = Networks.averaging(recipe, teacher, plan.config.training.ema_sigmas)
    for average in (networks.ema, *networks.powers.values()):
        average.requires_grad_(False)
    return teacher, recipe, networks, where


def _passes(plan: Plan, teacher: Teacher) -> tuple[StepPasses, str]:
    """Passes of a step, counted on a small teacher that is at hand, of the same kind of conditions where there is one:
    how often a method evaluates its networks is no matter of their size."""
    name = next(_stand_ins(teacher), default_teacher())
    small = resolve(name).load(plan.context.reporter)
    if teacher.guide:
        small = small.guided_by(resolve(name).fresh(0))
    with suppress(DistillkitError):
        return passes_of(recipe_of(plan.config, plan.method, small), small), name
    # Guidance, and settings in the teacher's own terms, may mean nothing to it.
    plain = plan.config.model_copy(update={"settings": {}})
    return passes_of(recipe_of(plain, plan.method, small), small), f"{name} with default settings"


def _stand_ins(teacher: Teacher) -> Iterator[str]:
    for name, offer in registry().named("teachers").items():
        card = card_of(offer)
        if card and not card.url and card.spec.conditioner.get("kind") == teacher.spec.conditioner.get("kind"):
            yield name


def _activations(teacher: Teacher, training: TrainingConfig) -> tuple[float, str]:
    """Bytes that one sample's pass keeps for the way back, those of half precision half as large; 0, and why, where
    they are not known."""
    if training.gradient_checkpointing:
        return 0, "computed anew on the way back (--gradient-checkpointing), and not counted here"
    if teacher.conditioner.takes_text:
        return 0, (
            "not counted: the text encoder, which is not loaded, says how large conditions are; --dry-run without "
            "--devices measures them"
        )
    network = teacher.copy_denoiser().to(META).requires_grad_(True)
    condition = teacher.conditioner.encode(teacher.conditioner.in_turn(range(1))).to(META)
    x = torch.zeros(1, *teacher.spec.shape, device=META)
    try:
        whole = activation_bytes(network, lambda: network(x, torch.ones(1, device=META), condition))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return 0, f"not counted: the network cannot be followed without weights ({str(error).splitlines()[0][:100]})"
    return whole / (1 if training.precision == "fp32" else 2), ""


def _spreads(devices: int, machine: int) -> Iterator[Spread]:
    names: tuple[StrategyName, ...] = ("replicate", "shard", "hybrid")
    for name in names:
        if name != "hybrid" or (devices > machine > 1 and devices % machine == 0):
            yield Spread.of(name, devices, machine)


def _lowered(size: Network, dtype: str) -> Network:
    """The teacher and its guide with weights in another type than float32 (`--teacher-dtype`)."""
    if size.name not in GIVEN or dtype == "fp32":
        return size
    share = (DTYPES[dtype].itemsize if dtype in DTYPES else 1) / 4
    return replace(
        size, parts=Tensors(size.parts.weights * share), whole=Tensors(size.whole.weights * share),
        gathered=size.gathered * share, block=size.block * share,
    )  # fmt: skip


def _offloaded(size: Network) -> Network:
    """The teacher and its guide with their parts in the CPU's memory (`--offload-teacher`)."""
    return replace(size, parts=Tensors()) if size.name in GIVEN else size


def _network(size: Network) -> str:
    held = size.parts.weights + size.whole.weights
    trained = size.parts.gradients + size.whole.gradients
    return f"{size.name} {scaled(held, 'B')}" + (f" ({scaled(trained, 'B')} trained)" if trained else "")


def _passed(size: Network) -> str:
    back = f", {size.passes.backward:.3g} with a way back" if size.passes.backward else ""
    return f"{size.name} {size.passes.forward:.3g}{back}"


def _row(found: Expected, spread: Spread) -> str:
    held = found.held
    memory = [
        f"weights {scaled(held.weights, 'B')}", f"gradients {scaled(held.gradients, 'B')}",
        f"moments {scaled(held.moments, 'B')}",
        *([f"blocks in use {scaled(found.gathered, 'B')}"] if found.gathered else []),
        *([f"activations {scaled(found.activations, 'B')}"] if found.activations else []),
    ]  # fmt: skip
    sent = {"all-gather": found.all_gather, "reduce-scatter": found.reduce_scatter, "all-reduce": found.all_reduce}
    shown = ", ".join(f"{name} {scaled(value, 'B')}" for name, value in sent.items() if value)
    how = f"{spread.copies} x {spread.sharing}: " if spread.name == "hybrid" else ""
    return (
        f"{how}{scaled(found.memory, 'B')} a device ({', '.join(memory)}); sends {scaled(found.sent, 'B')} a step"
        + (f" ({shown})" if shown else "")
    )
