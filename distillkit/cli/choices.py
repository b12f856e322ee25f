"""Options that several commands share, and what completion offers for them; nothing here imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from distillkit.cli import names

DEVICES = ("auto", "cpu", "cuda", "mps")
SUITES = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmark" / "suites").glob("*.yaml"))
CONFIG = "config.yaml"


def offered(*kinds: str) -> Callable[[str], list[str]]:
    """Completion by the names of some kinds, and by files and folders."""

    def complete(incomplete: str) -> list[str]:
        found = [name for kind in kinds for name in names.names(kind) if name.startswith(incomplete)]
        return found or list(_paths(incomplete))

    return complete


def suites(incomplete: str) -> list[str]:
    """Completion by the shipped suites, and by files."""
    return [name for name in SUITES if name.startswith(incomplete)] or list(_paths(incomplete))


def run_folders(incomplete: str) -> list[str]:
    """Completion by runs in ./runs and below the folder that is being typed, and by folders."""
    start = Path(incomplete.rpartition("/")[0] or "/") if "/" in incomplete else Path("runs")
    runs = [str(path.parent) for path in sorted(start.glob(f"*/{CONFIG}"))]
    return [run for run in runs if run.startswith(incomplete)] or list(_paths(incomplete))


def subjects(incomplete: str) -> list[str]:
    """Completion by runs and teachers."""
    teachers = [name for name in names.names("teachers") if name.startswith(incomplete)]
    return [*run_folders(incomplete), *teachers]


def methods(incomplete: str) -> list[str]:
    """Completion of a list of methods such as dmd,kd."""
    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in names.names("methods") if name.startswith(last)]


def devices() -> list[str]:
    """Completion by kinds of devices."""
    return list(DEVICES)


def launchers() -> list[str]:
    """Completion by where the jobs of a bench run."""
    return ["local", "slurm"]


def trackers() -> list[str]:
    """Completion by trackers."""
    return ["none", "tensorboard", "wandb", "trackio", "mlflow", *names.names("trackers")]


def _paths(incomplete: str) -> Iterator[str]:
    path = Path(incomplete)
    folder, start = (path, "") if incomplete.endswith("/") else (path.parent, path.name)
    if folder.is_dir():
        for found in sorted(folder.iterdir()):
            if found.name.startswith(start) and (start or not found.name.startswith(".")):
                yield f"{found}/" if found.is_dir() else str(found)


def light_parameters(command: str) -> list[inspect.Parameter]:
    """A method's options as far as completion needs them, from the kept names."""
    made = []
    for declared, flag, choices in names.options_of(command):
        complete = (
            offered("protocols") if declared == "--protocol" else run_folders if declared == "--student" else None
        )
        if choices:
            complete = _one_of(choices)
        option = typer.Option(declared, autocompletion=complete)
        kind: Any = bool if flag else str
        made.append(
            inspect.Parameter(
                declared.partition("/")[0].lstrip("-").replace("-", "_"), inspect.Parameter.KEYWORD_ONLY, default=None,
                annotation=Annotated[kind | None, option],
            )
        )  # fmt: skip
    return made


def _one_of(choices: list[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


DeviceOption = Annotated[
    str, typer.Option("--device", help="Where to compute: auto, cpu, cuda or mps.", autocompletion=devices)
]
ResolutionOption = Annotated[
    str | None,
    typer.Option(
        "--resolution",
        metavar="SIZE",
        help="Pictures of a pipeline of latents: 768, or WIDTHxHEIGHT.  [default: its own]",
    ),
]
EmbeddedGuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--embedded-guidance",
        min=0,
        help="Guidance that is an input of a teacher's network (FLUX.1-dev).  [default: its own]",
    ),
]
GuideWithOption = Annotated[
    str | None,
    typer.Option(
        "--guide-with",
        metavar="NAME",
        help="A smaller, less trained or unconditional teacher that --guidance leads away from (autoguidance).  "
        "[default: no condition]",
        autocompletion=offered("teachers"),
    ),
]
LoraOption = Annotated[
    str | None,
    typer.Option("--lora", metavar="FILE|hf:ORG/REPO[/FILE]", help="Of a pipeline: LoRA on its network."),
]
LoraScaleOption = Annotated[
    float | None, typer.Option("--lora-scale", help="What the LoRA is multiplied with.  [default: 1]")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights", metavar="FILE|hf:ORG/REPO[/FILE]", help="Of a pipeline: weights in the place of its network's."
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="NAME[,OPTION=VALUE]",
        help="Of a pipeline: scheduler of diffusers in the place of its own, such as "
        "EulerDiscreteScheduler,timestep_spacing=trailing; or a scheduler_config.json.",
    ),
]  # fmt: skip
TimestepsOption = Annotated[
    str | None, typer.Option("--timesteps", metavar="LIST", help="Of a pipeline: its steps, such as 999,749,499,249.")
]
EtaOption = Annotated[
    float | None, typer.Option("--eta", min=0, max=1, help="Of a pipeline: share of fresh noise, of DDIM and TCD.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with settings; options win.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its path: training.lr=1e-4.")
]
TrackerProjectOption = Annotated[
    str | None,
    typer.Option(
        "--tracker-project", help="Project of the tracker.  [default: WANDB_PROJECT and the like, or distillkit]"
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=1,
        help="Seconds after which a process that keeps others waiting counts as stuck.  [default: 600]",
    ),
]  # fmt: skip
DryRunOption = Annotated[bool, typer.Option("--dry-run", "-n", help="Show the plan; write nothing.")]


def count_of(text: str, option: str) -> int | None:
    """A count such as 300k or 1.5M; None of "".

    Raises:
        UsageError: naming the option.
    """
    from distillkit.counts import parse_count
    from distillkit.errors import UsageError

    found = parse_count(text) if text else None
    if found is not None and (not isinstance(found, int) or found < 1):
        raise UsageError(f"{option} {text}: write a count such as 300k or 1.5M")
    return found
