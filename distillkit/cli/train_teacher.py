"""`distillkit teachers train`: its options are made from the configuration."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from distillkit.cli.choices import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    SetOption,
    TimeoutOption,
    TrackerProjectOption,
    light_parameters,
    offered,
    run_folders,
    trackers,
)
from distillkit.cli.help import made_command
from distillkit.cli.names import completing


def train_command() -> Any:
    """The command, its options taken from the configuration of data, network, loss and training."""
    about = "Train a teacher on real images by denoising score matching (EDM), or one that brings its data, anew."
    if completing():
        return made_command("train", light_parameters("teachers train"), common_options, lambda values: None, about)
    from distillkit.cli.option_models import parameters

    return made_command("train", parameters(teacher_sections()), common_options, train, about)


def teacher_sections() -> list[Any]:
    """What can be set of a teacher's training."""
    from distillkit.data.config import DataConfig
    from distillkit.engine.config import TrainingConfig
    from distillkit.jobs.teacher_recipe import EDM_TRAINING, LossConfig, NetworkConfig
    from distillkit.runs.config import EvaluationConfig
    from distillkit.runs.options import Section

    return [
        Section(("data",), DataConfig, "Images", "data-"),
        Section(("network",), NetworkConfig, "Network"),
        Section(("loss",), LossConfig, "Loss"),
        Section(("training",), TrainingConfig, "Training", "", EDM_TRAINING, "with --data"),
        Section(("evaluation",), EvaluationConfig, "Evaluation", "evaluation-"),
    ]


def common_options(
    *,
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the teacher; without --data, one that brings its own.", show_default=False),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="With --data: the network, anew, and autoencoder and text encoder of this pipeline of diffusers.",
            autocompletion=offered("teachers"),
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder.  [default: runs/teacher-NAME-TIME]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with the run in this folder.", autocompletion=run_folders)
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and draws.  [default: 0]")] = None,
    conditional: Annotated[
        bool | None,
        typer.Option("--conditional/--unconditional", help="Use the labels, if there are any.  [default: yes]"),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, recorded with every student.")] = None,
    device: DeviceOption = "auto",
    report_to: Annotated[
        str, typer.Option("--report-to", help="Tracker beside metrics.jsonl.", autocompletion=trackers)
    ] = "none",
    tracker_project: TrackerProjectOption = None,
    timeout: TimeoutOption = None,
    dry_run: DryRunOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Options that are no settings of data, network or training."""


def train(values: dict[str, Any]) -> None:
    """Resolve the configuration, train, and show what was made."""
    from distillkit.cli.closing import console, show_plan, suggest_run
    from distillkit.cli.option_models import typed_values
    from distillkit.errors import UsageError
    from distillkit.jobs.context import TIMEOUT, job_context, launch
    from distillkit.jobs.launcher import TRAINING, launcher_settings
    from distillkit.jobs.plan import plan_teacher
    from distillkit.jobs.train_teacher import TeacherTraining, new_teacher, resolve_teacher
    from distillkit.runs.config import merge, read_config, set_values
    from distillkit.runs.folder import RunFolder
    from distillkit.runs.options import nested

    run = {
        name: values.pop(name)
        for name in ("output_dir", "resume", "config", "set_", "device", "report_to", "tracker_project")
    }
    dry_run, quiet, timeout = values.pop("dry_run"), values.pop("quiet"), values.pop("timeout")
    typed = typed_values(values)
    top: dict[str, Any] = {
        str(key): typed.pop(key) for key in ("name", "like", "seed", "conditional", "licence") if key in typed
    }
    options = merge(nested(typed, teacher_sections()), top, set_values(run["set_"] or []))
    resume: Path | None = run["resume"]
    if resume and (run["config"] or run["output_dir"]):
        raise UsageError("--resume takes the configuration and the folder from the run; drop --config and --output-dir")
    saved = RunFolder(resume, "").saved_config() if resume else read_config(run["config"]) if run["config"] else None
    config = resolve_teacher(options, saved)
    written = merge(saved.values if saved else {}, options).get("training") or {}
    training, remarks = launcher_settings().training(config.training, written)
    config = config.model_copy(update={"training": training})
    where = resume or run["output_dir"] or Path("runs") / f"teacher-{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(where, f"distillkit teachers train {config.name}")
    with job_context(
        precision=config.training.precision, device=run["device"], report_to=run["report_to"],
        tracker_project=run["tracker_project"], quiet=quiet, timeout=timeout or TIMEOUT,
        settled=TRAINING, remarks=remarks,
    ) as context:  # fmt: skip
        if dry_run:
            show_plan(config, plan_teacher(config, context, folder, resume=bool(resume)))
            return
        work = TeacherTraining(config, *new_teacher(config, context.device, context.reporter.say), folder, context)
        trained = launch(
            folder, config, context, lambda: work.run(resume=bool(resume)), resume=bool(resume), inputs=work.inputs
        )
        if not context.main:
            return
    out = console()
    if trained.record:
        figure = trained.record.figures[trained.record.label]
        out.print(f"{trained.record.label} {figure.text}", markup=False, highlight=False)
    out.print(
        f"weights sha256 {trained.weights_sha256}\nteacher in {trained.folder}", highlight=False, soft_wrap=True,
        markup=False,
    )  # fmt: skip
    suggest_run(out, str(trained.folder), prompts=trained.takes_text)
