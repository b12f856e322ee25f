"""What a run would do and take: teacher, data, memory, operations, disk and time. Nothing is written or downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sized

from accelerate import Accelerator
from pydantic import BaseModel

from distillkit.contracts.objective import Objective
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.teacher import Teacher
from distillkit.counts import scaled
from distillkit.data.hub import is_hub
from distillkit.downloads import is_for_a_download, nothing_downloaded, offline
from distillkit.engine.config import TrainingConfig
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import existing_parent
from distillkit.jobs.adapters import adapters_of
from distillkit.jobs.context import Context, check_launch
from distillkit.jobs.distil import Distillation
from distillkit.jobs.measures import measures_for
from distillkit.jobs.part_data import part_images, pipeline_of
from distillkit.jobs.planned import Plan
from distillkit.jobs.prompts import encodings_plan
from distillkit.jobs.teacher_config import NETWORK, PartsConfig, TeacherRunConfig
from distillkit.jobs.teacher_recipe import teacher_recipe
from distillkit.jobs.train_part import new_part
from distillkit.jobs.train_parts import PartsTraining
from distillkit.jobs.train_teacher import new_teacher
from distillkit.jobs.training import require_checkpoint_space
from distillkit.jobs.trial import Spread, Trial, try_learner, try_training
from distillkit.models.guide_cost import guide_cost
from distillkit.models.store.resolve import resolve
from distillkit.progress import clock
from distillkit.runs.folder import CONFIG, RunFolder

Rows = list[tuple[str, str]]


def plan_rows(plan: Plan) -> tuple[BaseModel, Rows]:
    """The plan of a distillation, and its configuration with all settings completed.

    A teacher that would have to be downloaded is replaced by one with random weights.

    Raises:
        UsageError, DistillkitError: what the run would be refused with.
    """
    check_launch(plan.folder, plan.config, resume=plan.resuming)
    reference = None if plan.teacher else resolve(plan.config.teacher, plan.config.pipeline)
    if reference:
        reference.check()
    with nothing_downloaded() as needed:
        try:
            teacher, remark = plan.teacher, ""
            if reference and not reference.available:
                size = "" if reference.download_bytes is None else f" {_bytes(reference.download_bytes)}"
                teacher = reference.skeleton(plan.context.reporter)
                which = "" if reference.unguided is reference else f" {' and '.join(reference.absent)},"
                licence = teacher.spec.licence.partition(":")[0] or "licence not recorded"
                remark = f"to be downloaded:{which}{size}, {licence}"
            job = plan.job(teacher)
            job.prepare()
            config: BaseModel = job.config
            rows = _distillation_rows(plan, job, remark)
        except DistillkitError as error:
            if not is_for_a_download(error):
                raise
            config, rows = plan.config, [("not known yet", str(error)), _folder_row(plan.folder)]
    return config, rows + [("to be downloaded", name) for name in needed.names]


def _distillation_rows(plan: Plan, job: Distillation, remark: str) -> Rows:
    recipe, training, context = job.recipe, job.config.training, plan.context
    parameters = sum(p.numel() for p in recipe.student.parameters())
    shape = " x ".join(map(str, job.teacher.spec.shape))
    rows = [
        ("teacher", f"{job.teacher.spec.name}, samples {shape}, conditions: {job.teacher.conditioner.summary()}"),
        *([("guide", _guide(job.teacher))] if job.teacher.guide else []),
        *([("", remark)] if remark else []),
        *(
            [("", f"{job.lowered}, which its figures and those of what learns from it depend on")]
            if job.lowered
            else []
        ),
        *([("prompts", job.prompts.summary)] if job.prompts else []),
        ("student", f"{parameters:,} parameters, {_sampler(recipe)}"),
        *(("adapters", line.removeprefix("adapters: ")) for line in adapters_of(recipe)),
        ("settings", plan.remark.removeprefix("settings: ")),
        ("objectives", ", ".join(_objective(o) for o in recipe.objectives)),
        ("trained beside", ", ".join(learner.name for learner in recipe.learners) or "nothing"),
        ("training", _training(training, context.accelerator)),
        ("figures", job.measures.summary.removeprefix("figures: ")),
    ]
    trial, reason = _tried(recipe, job.teacher, training, context.accelerator, (job.strategy, job.networks))
    disk = memory = 0.0
    if encodings := encodings_plan(job.teacher, job.config.prompts.encodings, training.duration):
        rows.append(("text encodings", encodings.summary))
        disk, memory = disk + encodings.disk_bytes, memory + encodings.memory_bytes
    for source in job.sources.values():
        found = source.plan()
        took = ""
        if trial and found.evaluations:
            took = f", about {_duration(found.evaluations * trial.seconds_per_evaluation / context.world)}"
        made = f" ({found.evaluations:,} teacher evaluations, {_bytes(found.disk_bytes)} of disk{took})"
        rows.append((source.name, found.summary + (made if found.evaluations else "")))
        disk, memory = disk + found.disk_bytes, memory + found.memory_bytes
    return rows + _costs(trial, reason, training, context.accelerator, plan.folder, disk, memory)


def plan_teacher(config: TeacherRunConfig, context: Context, folder: RunFolder, *, resume: bool = False) -> Rows:
    """The plan of a teacher's training.

    Raises:
        UsageError, DistillkitError: what the training would be refused with.
    """
    check_launch(folder, config, resume=resume)
    path = str(config.data.path or "")
    if is_hub(path) and not offline():
        return [
            ("images", f"{path}, loaded and checked when the run starts"),
            ("network", "its size follows from that of the images"),
            ("training", _training(config.training, context.accelerator)),
            _folder_row(folder),
        ]
    with nothing_downloaded():
        teacher, images = new_teacher(config, context.device, context.reporter.say)
        measures = measures_for(teacher, config.evaluation)
        parameters = sum(p.numel() for p in teacher.denoiser.parameters())
        count = f"{len(images):,}" if isinstance(images, Sized) else "the data set's"
        shape = " x ".join(map(str, teacher.spec.shape))
        for doubt in config.training.doubts:
            context.reporter.say(f"warning: {doubt}")
        rows = [
            ("images", f"{count} images {shape}, conditions: {teacher.conditioner.summary()}, "
             f"from {path or f'the data that come with the teacher {config.name}'}"),
            ("network", f"{teacher.spec.network['kind']}, {parameters:,} parameters"),
            ("training", _training(config.training, context.accelerator)),
            ("figures", measures.summary.removeprefix("figures: ")),
        ]  # fmt: skip
        recipe = teacher_recipe(teacher.to(context.device), config.loss)
        trial, reason = _tried(recipe, teacher.to(context.device), config.training, context.accelerator)
        return rows + _costs(trial, reason, config.training, context.accelerator, folder, 0.0, 0.0)


def plan_part(config: TeacherRunConfig, context: Context, folder: RunFolder, *, resume: bool = False) -> Rows:
    """The plan of a training of an autoencoder or a text encoder.

    Raises:
        UsageError, DistillkitError: what the training would be refused with.
    """
    check_launch(folder, config, resume=resume)
    with nothing_downloaded():
        pipeline = pipeline_of(config)
        images = part_images(config, pipeline, context.reporter.say)
        part = new_part(config, pipeline, images, context.accelerator.num_processes)
        for doubt in config.training.doubts:
            context.reporter.say(f"warning: {doubt}")
        parameters = sum(p.numel() for p in part.learner.parameters())
        rows = [
            ("images", images.summary),
            (part.name, f"of {pipeline.parts.source}, anew: {parameters:,} parameters in training"),
            ("training", _training(config.training, context.accelerator)),
        ]
        try:
            opened = images.open(context.device, images.batch)
            trial = try_learner(part.learner, opened, config.training, context.accelerator)
            reason = ""
        except (DistillkitError, RuntimeError, MemoryError) as error:
            trial, reason = None, str(error).splitlines()[0]
        return rows + _costs(trial, reason, config.training, context.accelerator, folder, 0.0, 0.0)


def plan_parts(
    config: PartsConfig, context: Context, folder: RunFolder, *, resume: bool = False
) -> list[tuple[TeacherRunConfig, Rows]]:
    """The plans of a training of all parts, with their configurations. A part on top of another is planned on what that
    other part is now, which is as large.

    Raises:
        UsageError, DistillkitError: what the training would be refused with.
    """
    check_launch(folder, config, resume=resume)
    work = PartsTraining(config, folder, context)
    plans: list[tuple[TeacherRunConfig, Rows]] = []
    for part, own in config.parts.items():
        place, plan = work.part_folder(part), plan_teacher if part == NETWORK else plan_part
        plans.append((own, plan(own, context, place, resume=(place / CONFIG).is_file())))
    return plans


def _guide(teacher: Teacher) -> str:
    """What guides the teacher, and what an evaluation of it costs beside the teacher's."""
    assert teacher.guide is not None
    parameters = sum(p.numel() for p in teacher.guide.denoiser.parameters())
    return (
        f"{teacher.guide.title}, {parameters:,} parameters, {guide_cost(teacher):.3g} forward-equivalents an evaluation"
    )


def _sampler(recipe: Recipe) -> str:
    sampler = recipe.final_sampler
    levels = sampler.times(recipe.student.schedule)
    shown = ", ".join(f"{t:.4g}" for t in levels[:8])
    return f"{type(sampler).__name__} at t = {shown}{' ...' if len(levels) > 8 else ''}"


def _objective(objective: Objective) -> str:
    return f"{objective.name} x {objective.weight:g}" + (f" ({objective.detail})" if objective.detail else "")


def _tried(
    recipe: Recipe, teacher: Teacher, training: TrainingConfig, accelerator: Accelerator, spread: Spread | None = None
) -> tuple[Trial | None, str]:
    try:
        return try_training(recipe, teacher, training, accelerator, spread=spread), ""
    except UsageError:  # settings that the training would be refused for
        raise
    except (DistillkitError, RuntimeError, MemoryError) as error:
        return None, str(error).splitlines()[0]


def _costs(
    trial: Trial | None,
    reason: str,
    training: TrainingConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    disk: float,
    data_memory: float,
) -> Rows:
    """Memory, operations, disk and time by the trial, or why there was none."""
    if trial is None:
        return [("memory, time", f"not estimated: {reason}"), _folder_row(folder)]
    require_checkpoint_space(folder, training, trial.checkpoint_bytes, trial.snapshot_bytes)
    local = training.batch // accelerator.num_processes
    in_pass = min(training.batch_per_device or local, local)
    memory = trial.memory(in_pass) + data_memory
    disk += training.checkpoint_copies * trial.checkpoint_bytes + trial.snapshot_bytes + trial.weight_bytes
    free = shutil.disk_usage(existing_parent(folder.path.resolve())).free
    speed = _processes(accelerator) / trial.seconds_per_image
    passes = -(-local // in_pass)
    return [
        (
            "memory",
            f"about {_bytes(memory)} a process: weights {_bytes(trial.weight_bytes)}, gradients and moments "
            f"{_bytes(trial.training_bytes)}, activations {_bytes(in_pass * trial.activation_bytes_per_image)} "
            f"({in_pass} samples a pass, {passes} {'pass' if passes == 1 else 'passes'} a step)"
            + (f", working space {_bytes(trial.working_bytes)}" if trial.working_bytes else "")
            + f", data {_bytes(data_memory)}{_there(memory)}",
        ),
        (
            "operations",
            _flops(trial.flops_per_image, training.batch) + _evaluations(trial),
        ),
        ("disk", f"about {_bytes(disk)} ({_bytes(free)} free)" + (" - too little" if disk > free else "")),
        (
            "time",
            f"about {_duration(training.duration / speed)} for the training on {_processes(accelerator)} x "
            f"{accelerator.device}, at {speed:,.3g} images/s (measured for {trial.seconds:.0f} s, "
            f"{trial.batch} {'sample' if trial.batch == 1 else 'samples'} a pass; evaluations and pictures "
            "come on top)",
        ),
        _folder_row(folder),
    ]


def _evaluations(trial: Trial) -> str:
    """Of networks; nothing where what is trained is none."""
    if not trial.evaluations:
        return "no network is evaluated"
    roles = ", ".join(f"{role} {count:.4g}" for role, count in trial.evaluations.items())
    return f"{sum(trial.evaluations.values()):.4g} forward-equivalents an image ({roles})"


def _folder_row(folder: RunFolder) -> tuple[str, str]:
    return "folder", f"{folder.path} (nothing was written)"


def _flops(an_image: float | None, batch: int) -> str:
    if an_image is None:
        return ""
    return f"{scaled(an_image, 'FLOP')} an image, {scaled(an_image * batch, 'FLOP')} a step; "


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


def _bytes(count: float) -> str:
    """1536 -> '1.54 kB'."""
    return scaled(count, "B")


def _duration(seconds: float) -> str:
    """75 -> '1:15', two weeks -> '14.0 days'."""
    return clock(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"
