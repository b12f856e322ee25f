"""`distillkit run METHOD`: distil a teacher. The options of a method are made from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

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
from distillkit.cli.names import completing, names


class MethodGroup(TyperGroup):
    """One sub-command for each installed method and any Python file that defines one; made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        if completing():
            return names("methods")
        from distillkit.registry import registry

        return sorted(registry().named("methods"))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return method_command(cmd_name)


app = typer.Typer(
    cls=MethodGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Distil a teacher into a student with few network evaluations. METHOD is an installed method or a Python file "
    "that defines one; `distillkit run METHOD --help` shows its options.",
)


@app.callback()
def _run() -> None: ...


def method_command(name: str) -> Any:
    """The command for one method, its options taken from the run's and the method's configuration."""
    if completing():
        return made_command(name, light_parameters(name), common_options, lambda values: None, "")
    from distillkit.cli.option_models import parameters
    from distillkit.jobs.planned import method_offer
    from distillkit.runs.config import RunConfig
    from distillkit.runs.options import sections_of

    method = method_offer(name).value
    teacher = RunConfig.model_fields["teacher"].get_default(call_default_factory=True)
    sections = sections_of(method, method.preset_for(teacher))

    return made_command(
        name, parameters(sections), common_options, lambda values: run_method(name, values), method.summary()
    )


def common_options(
    *,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Name, folder, EDM .pkl, diffusers model or hf:ORG/REPO.  [default: the embedded one]",
            autocompletion=offered("teachers"),
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Folder of the run.  [default: runs/METHOD-TEACHER-TIME]"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Continue the run in this folder; with a longer --duration a finished one too.",
            autocompletion=run_folders,
        ),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.  [default: 0]")] = None,
    device: DeviceOption = "auto",
    report_to: Annotated[
        str,
        typer.Option(
            "--report-to",
            help="Tracker beside metrics.jsonl: none, tensorboard, wandb, trackio, ...",
            autocompletion=trackers,
        ),
    ] = "none",
    tracker_project: TrackerProjectOption = None,
    timeout: TimeoutOption = None,
    dry_run: DryRunOption = False,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="With --dry-run: what each of so many devices would hold and send, by formula; loads no weights.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; the closing table alone.")] = False,
) -> None:
    """Options that every method has."""


def run_method(name: str, values: dict[str, Any]) -> None:
    """Run, or show the plan, and show what was made."""
    from distillkit.cli.closing import show_plan, show_result
    from distillkit.cli.option_models import typed_values
    from distillkit.errors import UsageError
    from distillkit.jobs.api import distil
    from distillkit.jobs.context import is_first_process
    from distillkit.jobs.devices import device_rows
    from distillkit.jobs.plan import plan_rows
    from distillkit.jobs.planned import planned
    from distillkit.runs.validation import set_values

    dry_run, device, devices = values.pop("dry_run"), values.pop("device"), values.pop("devices")
    if devices and not dry_run:
        raise UsageError("--devices goes with --dry-run; a run's own are those of its processes (torchrun)")
    arguments = typed_values(values) | {"values": set_values(values["set_"] or []), "device": device}
    arguments.pop("set_", None)
    if dry_run:
        with planned(name, **arguments) as plan:
            show_plan(*((plan.config, device_rows(plan, devices)) if devices else plan_rows(plan)))
        return
    run = distil(name, **arguments)
    if is_first_process():
        show_result(run)
