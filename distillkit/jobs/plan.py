"""What a run would do and take: teacher, data, memory, operations, disk and time. Nothing is written or downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sized

from accelerate import Accelerator

from distillkit.contracts.method import Preset
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.teacher import Teacher
from distillkit.data.pairs import SHARD
from distillkit.engine.config import TrainingConfig
from distillkit.errors import DistillkitError
from distillkit.files import existing_parent
from distillkit.progress import clock
from distillkit.jobs.distil import Distillation
from distillkit.runs.folder import RunFolder
from distillkit.jobs.trial import Rehearsal, rehearse
from distillkit.jobs.train_teacher import TeacherRunConfig, open_data
from distillkit.models.edm.catalog import CATALOG, catalog_name
from distillkit.models.store.fetch import fetched
from distillkit.models.store.resolve import load_teacher
from distillkit.jobs.teacher_recipe import fresh_teacher, teacher_recipe

Rows = list[tuple[str, str]]


def teacher_for_plan(name: str) -> tuple[Teacher, str]:
    """The teacher, and a remark; one that would have to be downloaded is stood in for by random weights."""
    entry = CATALOG.get(catalog_name(name) or "")
    if entry and entry.url and not fetched(entry):
        remark = f"to be downloaded: {entry.parameters * 4 / 1e9:.1f} GB, {entry.spec.licence.partition(':')[0]}"
        return fresh_teacher(entry.spec, 0), remark
    return load_teacher(name), ""


def plan_run(job: Distillation, preset: Preset | None, remark: str) -> Rows:
    """The plan of a distillation whose teacher is `teacher_for_plan`'s."""
    config, recipe, training = job.config, job.recipe, job.config.training
    parameters = sum(p.numel() for p in recipe.student.parameters())
    rows = [
        ("teacher", f"{job.teacher.spec.name}, {parameters:,} parameters, samples {job.teacher.spec.shape}"),
        *([("", remark)] if remark else []),
        ("preset", f"{preset.name} ({preset.source})" if preset else "none for this teacher: defaults"),
        ("objectives", ", ".join(f"{o.name} x {o.weight:g}" for o in recipe.objectives)),
        ("trained beside", ", ".join(learner.name for learner in recipe.learners) or "nothing"),
        ("training", _training(training, job.accelerator)),
    ]
    needs_pairs = bool({"pairs", "pair_samples"} & recipe.needs)
    rehearsal, reason = _rehearsed(job.recipe, job.teacher, training, job.accelerator)
    disk = 0.0
    if needs_pairs:
        store, count = job.pair_store, config.pairs.count
        # Weights that are not there have made no pairs.
        missing = count if remark else min(count, len(store.missing(count)) * SHARD)
        size = missing * 8 * _numbers(job.teacher)
        disk += size
        evaluations = missing * (2 * store.steps - 1) * (1 if config.pairs.guidance == 1 else 2)
        took = ""
        if rehearsal and missing:
            took = f", about {_duration(evaluations * rehearsal.seconds_per_evaluation / _processes(job.accelerator))}"
        rows += [
            (
                "pairs",
                f"{count:,}, of which {missing:,} to make ({_bytes(size)}): {evaluations:,} teacher evaluations{took}",
            ),
            ("", str(store.folder.parent if remark else store.folder)),
        ]
    if "images" in recipe.needs:
        rows.append(("images", config.data.path or "the embedded digits"))
    rows += _costs(rehearsal, reason, training, job.accelerator, job.folder, disk)
    return rows


def plan_teacher(config: TeacherRunConfig, accelerator: Accelerator, folder: RunFolder) -> Rows:
    """The plan of a teacher's training."""
    spec, images = open_data(config, accelerator.device)
    teacher = fresh_teacher(spec, config.seed)
    parameters = sum(p.numel() for p in teacher.denoiser.parameters())
    classes = f"{spec.num_classes} classes" if spec.num_classes else "no classes"
    count = f"{len(images):,} images" if isinstance(images, Sized) else "images"
    rows = [
        ("images", f"{count} {spec.shape}, {classes}, from {config.data.path or 'scikit-learn (embedded)'}"),
        ("network", f"{spec.network['class']}, {parameters:,} parameters"),
        ("training", _training(config.training, accelerator)),
    ]
    recipe = teacher_recipe(teacher.to(accelerator.device), config.loss)
    rehearsal, reason = _rehearsed(recipe, teacher, config.training, accelerator)
    return rows + _costs(rehearsal, reason, config.training, accelerator, folder, 0.0)


def _rehearsed(
    recipe: Recipe, teacher: Teacher, training: TrainingConfig, accelerator: Accelerator
) -> tuple[Rehearsal | None, str]:
    try:
        return rehearse(recipe, teacher.to(accelerator.device), training, accelerator), ""
    except (DistillkitError, RuntimeError, MemoryError) as error:
        return None, str(error).splitlines()[0]


def _costs(
    rehearsal: Rehearsal | None,
    reason: str,
    training: TrainingConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    disk: float,
) -> Rows:
    """Memory, operations, disk and time by the rehearsal, or why there was none."""
    if rehearsal is None:
        return [("memory, time", f"not estimated: {reason}"), ("folder", f"{folder.path} (nothing was written)")]
    local = training.batch // accelerator.num_processes
    in_pass = min(training.batch_per_device or local, local)
    memory = rehearsal.memory(in_pass)
    disk += (training.keep_checkpoints + 1) * rehearsal.checkpoint_bytes + rehearsal.weight_bytes
    free = shutil.disk_usage(existing_parent(folder.path.resolve())).free
    speed = _processes(accelerator) / rehearsal.seconds_per_image
    roles = ", ".join(f"{role} {count:g}" for role, count in rehearsal.evaluations.items())
    passes = -(-local // in_pass)
    return [
        (
            "memory",
            f"about {_bytes(memory)} a process: weights {_bytes(rehearsal.weight_bytes)}, gradients and moments "
            f"{_bytes(rehearsal.training_bytes)}, activations {_bytes(in_pass * rehearsal.activation_bytes_per_image)} "
            f"({in_pass} samples a pass, {passes} {'pass' if passes == 1 else 'passes'} a step){_there(memory)}",
        ),
        (
            "operations",
            f"{_scaled(rehearsal.flops_per_image, 'FLOP')} an image, "
            f"{_scaled(rehearsal.flops_per_image * training.batch, 'FLOP')} a step; "
            f"{sum(rehearsal.evaluations.values()):g} forward-equivalents an image ({roles})",
        ),
        ("disk", f"about {_bytes(disk)} ({_bytes(free)} free)" + (" - too little" if disk > free else "")),
        (
            "time",
            f"about {_duration(training.duration / speed)} for the training on {_processes(accelerator)} x "
            f"{accelerator.device}, at {speed:,.3g} images/s (measured for {rehearsal.seconds:.0f} s, "
            f"{rehearsal.batch} {'sample' if rehearsal.batch == 1 else 'samples'} a pass; evaluations and pictures "
            "come on top)",
        ),
        ("folder", f"{folder.path} (nothing was written)"),
    ]


def _training(training: TrainingConfig, accelerator: Accelerator) -> str:
    return (
        f"{training.duration:,} images = {training.steps:,} steps of {training.batch}, {training.precision}, on "
        f"{accelerator.device}"
    )


def _there(needed: float) -> str:
    """What the machine has, where it has less."""
    import torch

    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    if there and needed > there:
        return f"; this machine has {_bytes(there)}: lower --batch-per-device or use --gradient-checkpointing"
    return ""


def _processes(accelerator: Accelerator) -> int:
    return int(accelerator.num_processes)


def _numbers(teacher: Teacher) -> int:
    channels, height, width = teacher.spec.shape
    return channels * height * width


def _bytes(count: float) -> str:
    """1536 -> '1.54 kB'."""
    return _scaled(count, "B")


def _scaled(value: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} P{unit}"


def _duration(seconds: float) -> str:
    """75 -> '1:15', two weeks -> '14.0 days'."""
    return clock(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"
