"""`distillkit teachers`: the catalogue, one teacher in full, and training the embedded one."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    rich_markup_mode=None,
    help="List the teachers; `teachers show NAME` explains one, `teachers train NAME` trains the embedded one anew.",
    invoke_without_command=True,
)


@app.callback()
def teachers(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand:
        return
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.teachers.catalog import CATALOG

    out = console()
    table = Table("teacher", "what it makes", "licence")
    for entry in CATALOG.values():
        table.add_row(entry.name, entry.title, entry.licence)
    out.print(table)
    out.print("A folder with teacher.json and model.safetensors is a teacher too: --teacher FOLDER.", highlight=False)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Catalogue name or folder.")]) -> None:
    """A teacher's shape, noise levels, sampler, licence and score."""
    import torch
    from rich.markup import escape
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.progress import reporter_for
    from distillkit.runs.scores import ruler_for, teacher_score
    from distillkit.teachers.catalog import load_teacher

    out = console()
    teacher = load_teacher(name)
    spec = teacher.spec
    table = Table(show_header=False, title=spec.name, title_justify="left")
    parameters = sum(p.numel() for p in teacher.denoiser.parameters())
    for key, value in {
        "samples": f"{spec.shape[1]} x {spec.shape[2]}, {spec.shape[0]} channel(s) in [-1, 1]",
        "conditions": f"{spec.num_classes} classes" if spec.num_classes else "none",
        "network": f"{spec.network['class']}, {parameters:,} parameters",
        "noise levels": f"sigma {spec.sigma_min:g} to {spec.sigma_max:g}, sigma_data {spec.sigma_data:g}",
        "sampler": f"Heun, {spec.solver_steps} steps, NFE {2 * spec.solver_steps - 1}",
        "licence": spec.licence,
        "source": spec.source,
        "weights sha256": spec.weights_sha256,
    }.items():
        table.add_row(key, value)
    if ruler := ruler_for(spec, 5000):
        result = teacher_score(teacher, ruler, torch.device("cpu"), reporter_for())
        table.add_row(
            escape(result.label), f"{result.distance.value:.5f} ({result.count:,} samples, {result.protocol_id})"
        )
        table.add_row("speed here", f"{result.images_per_second:,.0f} images/s")
    out.print(table)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="The teacher to train; only digits can be trained so far.")],
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="Folder of the run.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and draws.")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting: training.duration=500k.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    report_to: Annotated[str, typer.Option("--report-to", help="Tracker beside metrics.jsonl.")] = "none",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train the embedded teacher from scratch with the recipe of the shipped weights."""
    from distillkit.cli.closing import console
    from distillkit.engine.interrupt import stop_on_signal
    from distillkit.errors import UsageError
    from distillkit.progress import reporter_for
    from distillkit.registry import registry, unknown
    from distillkit.runs.accelerators import make_accelerator
    from distillkit.runs.config import set_values
    from distillkit.runs.folder import RunFolder
    from distillkit.runs.train_teacher import digits_config, train_teacher

    if name != "digits":
        raise UsageError(unknown("trainable teacher", name, ["digits"], "distillkit teachers"))
    options = set_values(set_ or [])
    where = resume or output_dir or Path("runs") / f"teacher-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(where, f"distillkit teachers train {name}")
    if resume:
        config = digits_config(folder.saved_config().values | options)
        folder.check_same(config)
    else:
        config = digits_config({"seed": seed, **options})
    accelerator = make_accelerator(config.training.precision, device, report_to, str(where))
    with stop_on_signal() as stop, folder.locked(main=accelerator.is_main_process):
        if not resume and accelerator.is_main_process:
            folder.begin(config)
        accelerator.wait_for_everyone()
        reporter = reporter_for(quiet=quiet)
        trained = train_teacher(config, folder, accelerator, reporter, stop, resume=bool(resume), report_to=report_to)
    if accelerator.is_main_process:
        out = console()
        if trained.score:
            out.print(f"{trained.score.label} {trained.score.distance.value:.5f}", markup=False, highlight=False)
        out.print(f"weights sha256 {trained.weights_sha256}\nteacher in {trained.folder}", highlight=False)
        method = next(iter(sorted(registry().methods)), "METHOD")
        out.print(f"next: distillkit run {method} --teacher {trained.folder}", highlight=False, soft_wrap=True)
