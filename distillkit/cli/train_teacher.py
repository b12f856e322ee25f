"""`distillkit teachers train`: its options are made from the configuration."""

from __future__ import annotations

import enum
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from distillkit.jobs.teacher_config import PartsConfig, TeacherRunConfig
    from distillkit.jobs.train_parts import Trained
    from distillkit.progress import Terminal


class TrainablePart(enum.Enum):
    """What `--part` takes."""

    network = "network"
    autoencoder = "autoencoder"
    text_encoder = "text-encoder"
    all = "all"


def train_command() -> Any:
    """The command, its options taken from the configuration of data, network, loss and training."""
    about = (
        "Train a teacher on real images by denoising score matching (EDM), or one that brings its data, anew. Of a "
        "pipeline of latents also its autoencoder and its text encoder."
    )
    if completing():
        return made_command("train", light_parameters("teachers train"), common_options, lambda values: None, about)
    from distillkit.cli.option_models import parameters

    return made_command("train", parameters(teacher_sections()), common_options, train, about)


def teacher_sections() -> list[Any]:
    """What can be set of a teacher's training."""
    from distillkit.data.config import DataConfig
    from distillkit.engine.config import TrainingConfig
    from distillkit.jobs.autoencoder import AutoencoderConfig
    from distillkit.jobs.teacher_recipe import EDM_TRAINING, LossConfig, NetworkConfig
    from distillkit.runs.config import EvaluationConfig
    from distillkit.runs.options import Section

    return [
        Section(("data",), DataConfig, "Images", "data-"),
        Section(("network",), NetworkConfig, "Network"),
        Section(("loss",), LossConfig, "Loss"),
        Section(("autoencoder",), AutoencoderConfig, "Autoencoder"),
        Section(("training",), TrainingConfig, "Training", "", EDM_TRAINING, "with --data"),
        Section(("evaluation",), EvaluationConfig, "Evaluation", "evaluation-"),
    ]


def common_options(
    *,
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the teacher; without --data, one that brings its own.", show_default=False),
    ] = None,
    part: Annotated[
        TrainablePart | None,
        typer.Option(
            help="What is trained; all: one after the other.  [default: network; all of a teacher that brings data for "
            "all]",
            show_default=False,
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="Teacher or pipeline whose network or other part is trained, anew; the rest stays as it is.",
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
    from distillkit.cli.closing import console
    from distillkit.cli.option_models import typed_values
    from distillkit.errors import UsageError
    from distillkit.jobs.context import TIMEOUT, job_context, launch
    from distillkit.jobs.launcher import TRAINING
    from distillkit.jobs.teacher_config import ALL, asked_part, resolve_parts, resolve_teacher
    from distillkit.jobs.train_parts import trained_by
    from distillkit.runs.folder import RunFolder
    from distillkit.runs.options import nested
    from distillkit.runs.validation import merge, read_config, set_values

    run = {
        name: values.pop(name)
        for name in ("output_dir", "resume", "config", "set_", "device", "report_to", "tracker_project")
    }
    dry_run, quiet, timeout = values.pop("dry_run"), values.pop("quiet"), values.pop("timeout")
    typed = typed_values(values)
    top: dict[str, Any] = {
        str(key): typed.pop(key) for key in ("name", "part", "like", "seed", "conditional", "licence") if key in typed
    }
    options = merge(nested(typed, teacher_sections()), top, set_values(run["set_"] or []))
    resume: Path | None = run["resume"]
    if resume and (run["config"] or run["output_dir"]):
        raise UsageError("--resume takes the configuration and the folder from the run; drop --config and --output-dir")
    saved = RunFolder(resume, "").saved_config() if resume else read_config(run["config"]) if run["config"] else None
    part = asked_part(options, saved)
    asked = resolve_parts(options, saved) if part == ALL else resolve_teacher(options, saved)
    config, remarks = _as_launched(asked, merge(saved.values if saved else {}, options).get("training") or {})
    kind = part if part in ("autoencoder", "text-encoder") else "teacher"
    where = resume or run["output_dir"] or Path("runs") / f"{kind}-{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(where, f"distillkit teachers train {config.name}")
    with job_context(
        precision=_trainings(config)[0].training.precision, device=run["device"], report_to=run["report_to"],
        tracker_project=run["tracker_project"], quiet=quiet, timeout=timeout or TIMEOUT,
        settled=TRAINING, remarks=remarks,
    ) as context:  # fmt: skip
        if dry_run:
            _show_plans(config, context, folder, resume=bool(resume))
            return
        folder = context.agreed(folder)
        work = trained_by(config, folder, context)
        made = launch(
            folder, config, context, lambda: work.run(resume=bool(resume)), resume=bool(resume), inputs=work.inputs
        )
        if context.main:
            out = console()
            for each in made if isinstance(made, list) else [made]:
                _show_trained(out, each)
            _suggest(out, _trainings(config)[-1], made[-1] if isinstance(made, list) else made)


def _trainings(config: TeacherRunConfig | PartsConfig) -> list[TeacherRunConfig]:
    from distillkit.jobs.teacher_config import PartsConfig

    return list(config.parts.values()) if isinstance(config, PartsConfig) else [config]


def _as_launched(config: Any, written: Any) -> tuple[Any, list[str]]:
    """The configuration with what the launcher asks for, and a line for each value that it changed."""
    from distillkit.jobs.launcher import launcher_settings
    from distillkit.jobs.teacher_config import PartsConfig

    if isinstance(config, PartsConfig):
        made = {part: _as_launched(own, written) for part, own in config.parts.items()}
        remarks = list(dict.fromkeys(line for _, lines in made.values() for line in lines))
        return config.model_copy(update={"parts": {part: own for part, (own, _) in made.items()}}), remarks
    training, remarks = launcher_settings().training(config.training, written)
    return config.model_copy(update={"training": training}), remarks


def _show_plans(config: Any, context: Any, folder: Any, *, resume: bool) -> None:
    from distillkit.cli.closing import show_plan
    from distillkit.jobs.plan import plan_part, plan_parts, plan_teacher
    from distillkit.jobs.teacher_config import NETWORK, PartsConfig

    if isinstance(config, PartsConfig):
        for own, rows in plan_parts(config, context, folder, resume=resume):
            show_plan(own, rows)
    else:
        plan = plan_teacher if config.part == NETWORK else plan_part
        show_plan(config, plan(config, context, folder, resume=resume))


def _show_trained(out: Terminal, made: Trained) -> None:
    """What a training has made, and where it is."""
    from distillkit.jobs.train_part import TrainedPart

    if isinstance(made, TrainedPart):
        out.print(f"{made.summary}\npipeline in {made.folder}", highlight=False, soft_wrap=True, markup=False)
        return
    if made.record:
        for label, figure in made.record.figures.items():
            out.print(f"{label} {figure.text}", markup=False, highlight=False)
    out.print(
        f"weights sha256 {made.weights_sha256}\nteacher in {made.folder}", highlight=False, soft_wrap=True,
        markup=False,
    )  # fmt: skip


def _suggest(out: Terminal, config: TeacherRunConfig, made: Trained) -> None:
    """The command that goes on with what was made: a network on top of a part, a student of a network."""
    from distillkit.cli.closing import suggest_run
    from distillkit.jobs.train_part import TrainedPart

    if not isinstance(made, TrainedPart):
        suggest_run(out, str(made.folder), prompts=made.lacks_prompts)
        return
    command = ["distillkit", "teachers", "train", config.name, "--like", str(made.folder)]
    command += ["--data", config.data.path] if config.data.path else []
    out.print(f"next: {shlex.join(command)}", highlight=False, soft_wrap=True, markup=False)
