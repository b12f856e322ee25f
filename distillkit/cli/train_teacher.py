"""`distillkit teachers train`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer


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
