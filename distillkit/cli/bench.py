"""`distillkit bench`: methods side by side, from one teacher, at one cost, under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distillkit.cli.run import Device


def bench(
    suite: Annotated[str, typer.Option(help="digits, cifar10, imagenet64, mixture, or a YAML file.")] = "digits",
    methods: Annotated[
        str, typer.Option(help="Entries of the suite, or any installed methods: dmd,consistency.  [default: all]")
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each.  [default: the suite's]")] = None,
    budget: Annotated[
        str, typer.Option(help="Forward-equivalents of each training, such as 300k.  [default: the suite's]")
    ] = "",
    data: Annotated[str, typer.Option(help="Real images, for methods that need them and teachers without own.")] = "",
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder of results and runs.  [default: bench/SUITE]")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Make the report anew from the folder's results; run nothing.")
    ] = False,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show the plan; write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; the closing table alone.")] = False,
) -> None:
    """Compare methods at one cost.

    The same teacher, start, seeds, noise, precision and budget for all. The default takes under twenty minutes on two
    cores and needs no download. What is done is kept: the same command goes on after an interruption, and runs again
    only what has changed. Ends with exit code 1 if a method failed.
    """
    from distillkit.benchmark.harness import Bench
    from distillkit.benchmark.results import read_results
    from distillkit.benchmark.suite import chosen, load_suite
    from distillkit.cli.bench_tables import show_bench, show_bench_plan
    from distillkit.counts import parse_count
    from distillkit.engine.interrupt import stop_on_signal
    from distillkit.errors import UsageError
    from distillkit.progress import reporter_for
    from distillkit.jobs.accelerators import make_accelerator
    from distillkit.runs.folder import RunFolder
    from distillkit.models.store.resolve import load_teacher

    spent = parse_count(budget) if budget else None
    if spent is not None and (not isinstance(spent, int) or spent < 1):
        raise UsageError(f"--budget {budget}: write a count such as 300k or 1.5M")
    names = [name.strip() for name in methods.split(",") if name.strip()]
    asked = chosen(load_suite(suite), methods=names, seeds=seeds, budget=spent, images=data)
    folder = output_dir or Path("bench") / asked.name
    if report_only:
        results = read_results(folder)
        show_bench(folder, results)
        return
    reporter = reporter_for(quiet=quiet)
    accelerator = make_accelerator(str(asked.training.get("precision", "fp32")), device.value, "none", str(folder))
    with stop_on_signal() as stop:
        teacher = load_teacher(asked.teacher, reporter, lambda: stop.signum or 0)
        work = Bench(asked, folder, teacher, accelerator, reporter, stop)
        if dry_run:
            show_bench_plan(work)
            return
        with RunFolder(folder, "distillkit bench").locked(main=accelerator.is_main_process):
            results = work.run()
            if not accelerator.is_main_process:
                return
            show_bench(folder, results)
    if any(run.state == "failed" for run in results.runs):
        raise typer.Exit(1)
