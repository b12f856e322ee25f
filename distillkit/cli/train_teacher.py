"""`distillkit teachers train`: its options are made from the configuration."""

from __future__ import annotations

import inspect
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer


def train_command() -> Any:
    """The command, its options taken from the configuration of data, network, loss and training."""
    from distillkit.cli.option_models import Section, parameters
    from distillkit.data.stream import DataConfig
    from distillkit.engine.config import TrainingConfig
    from distillkit.runs.config import EvaluationConfig
    from distillkit.jobs.teacher_recipe import EDM_TRAINING, LossConfig, NetworkConfig

    sections = [
        Section("data", DataConfig, "Images", "data-"),
        Section("network", NetworkConfig, "Network"),
        Section("loss", LossConfig, "Loss"),
        Section("training", TrainingConfig, "Training", "", EDM_TRAINING, "with --data"),
        Section("evaluation", EvaluationConfig, "Evaluation", "evaluation-"),
    ]

    def command(**values: Any) -> None:
        train(values)

    made = [*inspect.signature(common_options, eval_str=True).parameters.values(), *parameters(sections)]
    command.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in made}
    command.__doc__ = (
        "Train a teacher on real images by denoising score matching (EDM), or `digits`, the embedded one, anew."
    )
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command("train")(command)
    return typer.main.get_command(single)


def common_options(
    *,
    name: Annotated[
        str | None, typer.Argument(help="Name of the teacher; digits repeats the shipped recipe.", show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder.  \\[default: runs/teacher-NAME-TIME]")
    ] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with settings; options win.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its path: training.lr=1e-4.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and draws.  \\[default: 0]")] = None,
    conditional: Annotated[
        bool | None,
        typer.Option("--conditional/--unconditional", help="Use the labels, if there are any.  \\[default: yes]"),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, recorded with every student.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    report_to: Annotated[str, typer.Option("--report-to", help="Tracker beside metrics.jsonl.")] = "none",
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show the plan; write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Options that are no settings of data, network or training."""


def train(values: dict[str, Any]) -> None:
    """Resolve the configuration, train, and show what was made."""
    from distillkit.cli.closing import console, show_plan, suggest_run
    from distillkit.cli.option_models import typed_values
    from distillkit.engine.interrupt import stop_on_signal
    from distillkit.errors import UsageError
    from distillkit.progress import reporter_for
    from distillkit.jobs.accelerators import make_accelerator
    from distillkit.runs.config import merge, read_config, set_values
    from distillkit.runs.folder import RunFolder
    from distillkit.jobs.plan import plan_teacher
    from distillkit.jobs.train_teacher import open_data, resolve_teacher, train_teacher

    typed = {key: values[key] for key in ("name", "seed", "conditional", "licence") if values[key] is not None}
    options = merge(typed_values(values), typed, set_values(values["set_"] or []))
    resume: Path | None = values["resume"]
    if resume and (values["config"] or values["output_dir"]):
        raise UsageError("--resume takes the configuration and the folder from the run; drop --config and --output-dir")
    if resume:
        config = resolve_teacher(options, RunFolder(resume, "").saved_config())
    else:
        config = resolve_teacher(options, read_config(values["config"]) if values["config"] else None)
    where = resume or values["output_dir"] or Path("runs") / f"teacher-{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(where, f"distillkit teachers train {config.name}")
    if resume:
        folder.check_same(config)
    accelerator = make_accelerator(config.training.precision, values["device"], values["report_to"], str(where))
    if values["dry_run"]:
        show_plan(config, plan_teacher(config, accelerator, folder))
        return
    data = open_data(config, accelerator.device)
    with stop_on_signal() as stop, folder.locked(main=accelerator.is_main_process):
        if not resume and accelerator.is_main_process:
            folder.begin(config)
        accelerator.wait_for_everyone()
        trained = train_teacher(
            config, data, folder, accelerator, reporter_for(quiet=values["quiet"]), stop,
            resume=bool(resume), report_to=values["report_to"],
        )  # fmt: skip
    if accelerator.is_main_process:
        out = console()
        if trained.score:
            out.print(f"{trained.score.label} {trained.score.value:.5f}", markup=False, highlight=False)
        out.print(
            f"weights sha256 {trained.weights_sha256}\nteacher in {trained.folder}", highlight=False, soft_wrap=True
        )
        suggest_run(out, str(trained.folder))
