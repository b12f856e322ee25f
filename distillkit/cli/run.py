"""`distillkit run METHOD`: distil a teacher. The options of a method are made from its configuration."""

from __future__ import annotations

import enum
import inspect
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class Device(enum.StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class MethodGroup(TyperGroup):
    """One sub-command for each installed method, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        from distillkit.registry import registry

        return sorted(registry().methods)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return method_command(cmd_name)


app = typer.Typer(
    cls=MethodGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Distil a teacher into a student with few network evaluations. `distillkit run METHOD --help` shows a "
    "method's options.",
)


@app.callback()
def _run() -> None: ...


def method_command(name: str) -> Any:
    """The command for one method, its options taken from the run's and the method's configuration."""
    from distillkit.cli.option_models import Section, parameters
    from distillkit.contracts.method import Preset
    from distillkit.data.stream import DataConfig
    from distillkit.engine.config import TrainingConfig
    from distillkit.registry import registry
    from distillkit.runs.config import EvaluationConfig, PairsConfig, RunConfig

    method = registry().method(name)
    preset = method.preset_for(RunConfig.model_fields["teacher"].default) or Preset("", ())
    label = f"{preset.name} preset"
    # A method's field that is called like one of the engine's keeps its meaning apart by the method's name.
    clash = set(method.Config.model_fields) & {*TrainingConfig.model_fields, *RunConfig.model_fields}
    sections = [
        Section("settings", method.Config, f"Settings of {name}", f"{name}-" if clash else "", preset.settings, label),
        Section("training", TrainingConfig, "Training", "", preset.training, label),
        Section("pairs", PairsConfig, "Noise-image pairs", "pairs-", preset.pairs, label),
        Section("data", DataConfig, "Real images (for methods that need them)", "data-"),
        Section("evaluation", EvaluationConfig, "Evaluation", "evaluation-"),
    ]

    def command(**values: Any) -> None:
        run_method(name, values)

    common = list(inspect.signature(common_options, eval_str=True).parameters.values())
    made = [*common, *parameters(sections)]
    command.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in made}
    command.__doc__ = method.summary()
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command(name)(command)
    return typer.main.get_command(single)


def common_options(
    *,
    teacher: Annotated[
        str | None,
        typer.Option(help="Catalogue name, folder, EDM .pkl, diffusers model or hf:ORG/REPO.  \\[default: digits]"),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Folder of the run.  \\[default: runs/METHOD-TEACHER-TIME]"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with the run in this folder, from its newest checkpoint.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with settings; options win.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its path: training.lr=1e-4.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.  \\[default: 0]")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    report_to: Annotated[
        str, typer.Option("--report-to", help="Tracker beside metrics.jsonl: none, tensorboard, wandb, trackio, ...")
    ] = "none",
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show the plan; write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; the closing table alone.")] = False,
) -> None:
    """Options that every method has."""


def run_method(name: str, values: dict[str, Any]) -> None:
    """Resolve the configuration, run, and show what was made."""
    from distillkit.cli.closing import show_plan, show_result
    from distillkit.cli.option_models import typed_values
    from distillkit.engine.interrupt import stop_on_signal
    from distillkit.errors import UsageError
    from distillkit.progress import Quiet, reporter_for
    from distillkit.registry import registry
    from distillkit.jobs.accelerators import make_accelerator, require_tracker
    from distillkit.runs.config import merge, read_config, resolve, set_values
    from distillkit.jobs.distil import Distillation
    from distillkit.runs.folder import RunFolder
    from distillkit.jobs.plan import plan_run, teacher_for_plan

    method = registry().method(name)
    require_tracker(values["report_to"])
    options: dict[str, Any] = {
        **typed_values(values),
        **{key: values[key] for key in ("teacher", "seed") if values[key] is not None},
    }
    options = merge(options, set_values(values["set_"] or []))
    resume: Path | None = values["resume"]
    if resume and (values["config"] or values["output_dir"]):
        raise UsageError("--resume takes the configuration and the folder from the run; drop --config and --output-dir")
    reporter = reporter_for(quiet=values["quiet"])
    if resume:
        saved = RunFolder(resume, f"distillkit run {name}").saved_config()
        config, preset = resolve(method, file=saved, options=options)
    else:
        file = read_config(values["config"]) if values["config"] else None
        config, preset = resolve(method, file=file, options=options)
    where = (
        resume
        or values["output_dir"]
        or Path("runs") / (f"{name}-{Path(config.teacher).stem}-{datetime.now():%Y%m%d-%H%M%S}")
    )
    folder = RunFolder(where, f"distillkit run {name}")
    accelerator = make_accelerator(config.training.precision, values["device"].value, values["report_to"], str(where))
    if resume:
        folder.check_same(config)
        if folder.finished:
            raise UsageError(
                f"{where} is finished; there is nothing to resume. Sample from it: distillkit sample {where}"
            )
    with stop_on_signal() as stop:
        if values["dry_run"]:
            teacher, remark = teacher_for_plan(config.teacher)
            job = Distillation(config, folder, accelerator, Quiet(), stop, teacher=teacher)
            show_plan(config, plan_run(job, preset, remark))
            return
        job = Distillation(config, folder, accelerator, reporter, stop, values["report_to"])
        job.prepare()
        with folder.locked(main=accelerator.is_main_process):
            if not resume and accelerator.is_main_process:
                folder.begin(config)
            accelerator.wait_for_everyone()
            if preset:
                job.reporter.say(f"settings: preset {preset.name!r} ({preset.source}) and your options")
            result = job.run(resume=resume is not None)
    if accelerator.is_main_process:
        show_result(result)
