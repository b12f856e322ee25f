"""`distillkit bench`: methods side by side, from one teacher, at one cost, under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distillkit.cli.choices import (
    SUITES,
    DeviceOption,
    DryRunOption,
    TimeoutOption,
    count_of,
    launchers,
    offered,
    suites,
)
from distillkit.cli.choices import methods as completed_methods


def bench(
    suite: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(SUITES)}, or a YAML file.  [default: the embedded teacher's]", autocompletion=suites
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Entries of the suite (published ones too), installed methods or Python files: dmd,./mine.py.  "
            "[default: all]",
            autocompletion=completed_methods,
        ),
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each.  [default: the suite's]")] = None,
    budget: Annotated[
        str, typer.Option(help="Forward-equivalents of each training, such as 300k.  [default: the suite's]")
    ] = "",
    data: Annotated[
        str | None, typer.Option(help="Real images, for methods that need them and teachers without their own.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts to train with, for teachers that make pictures of text: a file or hf:ORG/NAME:COLUMN."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Protocol by name, or a file of `reference make`.  [default: the suite's]",
            autocompletion=offered("protocols"),
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder of results and runs.  [default: bench/SUITE]")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report anew from the folder's results; run nothing.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, max=1000, help="Trainings at one time, each on a device of its own.")
    ] = 1,
    processes_per_job: Annotated[
        int, typer.Option(min=1, max=64, help="Processes of each training, which share its batch, on a device each.")
    ] = 1,
    launcher: Annotated[
        str, typer.Option(help="Where the jobs run: local (this machine) or slurm.", autocompletion=launchers)
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="An option of every Slurm job: partition=gpu, time=8:00:00, account=..., gpus=1."
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, max=100, help="How often a training whose process died is tried again.")
    ] = 2,
    device: DeviceOption = "auto",
    timeout: TimeoutOption = None,
    dry_run: DryRunOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; the closing table alone.")] = False,
) -> None:
    """Compare methods at one cost.

    The same teacher, start, seeds, noise, precision and budget for all. The default takes about half an hour on two
    cores and needs no download. What is done is kept: the same command continues after an interruption, and runs again
    only what has changed. With --jobs several trainings are done side by side, to the same results. Ends with exit code
    1 if a method failed.
    """
    from distillkit.benchmark import run
    from distillkit.benchmark.suite import default_suite, load_suite
    from distillkit.benchmark.workers.side_by_side import Workers
    from distillkit.cli.bench_tables import show_bench, show_bench_plan
    from distillkit.jobs.context import TIMEOUT, is_first_process

    if report_only:
        result = run.BenchResult(output_dir or Path("bench") / load_suite(suite or default_suite()).name)
        result.report()
        show_bench(result)
        return
    workers = Workers(jobs, processes_per_job, launcher, _options(slurm or []), retries)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    spent = count_of(budget, "--budget")
    if dry_run:
        show_bench_plan(
            run.plan(
                suite, methods=names, seeds=seeds, budget=spent, data=data, prompts=prompts, protocol=protocol,
                output_dir=output_dir, device=device, workers=workers,
            )
        )  # fmt: skip
        return
    result = run.bench(
        suite, methods=names, seeds=seeds, budget=spent, data=data, prompts=prompts, protocol=protocol,
        output_dir=output_dir, device=device, quiet=quiet, timeout=timeout or TIMEOUT,
        workers=workers,
    )  # fmt: skip
    if is_first_process():
        show_bench(result)
    if result.failed:
        raise typer.Exit(1)


def _options(given: list[str]) -> dict[str, str]:
    from distillkit.errors import UsageError

    options = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UsageError(f"--slurm {one}: write KEY=VALUE, such as partition=gpu")
        options[key.strip()] = value.strip()
    return options
