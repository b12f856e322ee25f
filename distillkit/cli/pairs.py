"""`distillkit pairs`: noise-image pairs of a teacher, made by many writers at once, verified, listed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distillkit.cli.choices import (
    DeviceOption,
    DryRunOption,
    EmbeddedGuidanceOption,
    GuideWithOption,
    ResolutionOption,
    SetOption,
    TimeoutOption,
    offered,
)

if TYPE_CHECKING:
    from distillkit.jobs.pair_checks import PairsChecked

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make, verify and list noise-image pairs. Several methods learn from them, and runs make what they lack; for "
    "large sets, `make` shares the work among any number of writers, `verify` looks for damage, `list` shows what the "
    "cache holds.",
)

TeacherOption = Annotated[
    str | None,
    typer.Option(
        help="Name, folder, EDM .pkl, diffusers model or hf:ORG/REPO.  [default: the embedded one]",
        autocompletion=offered("teachers"),
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        help="Make what `run METHOD` reads by its preset for this teacher: number, solver, steps and guidance; options "
        "here win.",
        autocompletion=offered("methods"),
    ),
]
CountOption = Annotated[str | None, typer.Option(help="Number of pairs, such as 100k or 1M.  [default: 10k]")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Steps of the solver.  [default: the teacher's own]")]
SolverOption = Annotated[
    str | None, typer.Option(help="heun, euler, ddim or another solver.  [default: the teacher's own]")
]
GuidanceOption = Annotated[
    float | None, typer.Option(min=0, help="Guidance weight of the teacher's samples.  [default: 1, or the method's]")
]
PromptsOption = Annotated[
    str | None,
    typer.Option(help="Prompts of a teacher of text: a file (one a line, csv, jsonl, ...) or hf:ORG/NAME[:COLUMN]."),
]
PromptsColumnOption = Annotated[str | None, typer.Option(help="Column of the prompts, where a table has several.")]
PromptsDtypeOption = Annotated[
    str | None, typer.Option(help="What text encodings are rounded to, as in the run: fp16, bf16 or fp32.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@app.callback()
def _pairs() -> None: ...


@app.command()
def make(
    teacher: TeacherOption = None,
    method: MethodOption = None,
    count: CountOption = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    guidance: GuidanceOption = None,
    prompts: PromptsOption = None,
    prompts_column: PromptsColumnOption = None,
    prompts_dtype: PromptsDtypeOption = None,
    resolution: ResolutionOption = None,
    embedded_guidance: EmbeddedGuidanceOption = None,
    guide_with: GuideWithOption = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="The K-th of N parts alone, without waiting for the others. By default writers share the work.",
        ),
    ] = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    device: DeviceOption = "auto",
    timeout: TimeoutOption = None,
    quiet: QuietOption = False,
) -> None:
    """Make the pairs that runs of this teacher find. Give the same command in as many processes and on as many machines
    as you like: they share the cache folder (DISTILLKIT_CACHE) and the work, and one that is killed costs a shard."""
    from distillkit.cli.closing import console
    from distillkit.jobs.pairs import make_pairs, plan_pairs
    from distillkit.models.store.resolve import default_teacher

    asked = _asked(locals())
    if dry_run:
        _show_plan(plan_pairs(**asked))
        return
    found = make_pairs(**asked)
    out = console()
    made = f"{found.made:,} made here, in whole shards" if found.made else "none made here"
    out.print(f"{found.count:,} pairs, {made}: {found.folder}", highlight=False)
    if found.missing:
        out.print(
            f"{found.missing:,} are still missing: other parts, or the same command without --part", highlight=False
        )
        return
    chosen, whose = method or "dmd", shlex.quote(teacher or default_teacher())
    # The weight of DMD's teacher is that of its pairs too.
    given = {
        "--prompts": prompts, "--guide-with": guide_with, "--pairs-guidance" if method else "--guidance": guidance,
        "--pairs-steps": steps, "--pairs-solver": solver, "--resolution": resolution,
        "--embedded-guidance": embedded_guidance,
    }  # fmt: skip
    texts = {option: f"{value:g}" if isinstance(value, float) else str(value) for option, value in given.items()}
    options = "".join(f" {option} {shlex.quote(texts[option])}" for option, value in given.items() if value is not None)
    out.print(
        f"next: distillkit run {chosen} --teacher {whose}{options}   "
        "(runs with the same solver, steps and guidance find them)", highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


@app.command()
def verify(
    store: Annotated[
        str | None, typer.Argument(help="Folder of pairs, or its name as `pairs list` shows it: its shards are hashed.")
    ] = None,
    teacher: TeacherOption = None,
    method: MethodOption = None,
    count: CountOption = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    guidance: GuidanceOption = None,
    prompts: PromptsOption = None,
    prompts_column: PromptsColumnOption = None,
    prompts_dtype: PromptsDtypeOption = None,
    resolution: ResolutionOption = None,
    embedded_guidance: EmbeddedGuidanceOption = None,
    guide_with: GuideWithOption = None,
    remake: Annotated[int, typer.Option(min=0, help="Pairs, drawn at random, that the teacher makes again.")] = 8,
    fix: Annotated[bool, typer.Option("--fix", help="Make anew what is damaged, missing or different.")] = False,
    set_: SetOption = None,
    device: DeviceOption = "auto",
    timeout: TimeoutOption = None,
    quiet: QuietOption = False,
) -> None:
    """Hash every shard, look for missing ones, and have the teacher make a few pairs again to compare. The exit code is
    1 where something is wrong. With a folder in the place of a teacher, shards are hashed alone."""
    from distillkit.jobs.pair_checks import verify_pairs

    if store is None and teacher is None and method is None:
        from distillkit.errors import UsageError

        raise UsageError("which pairs? Name --teacher, with the options that they were made with, or a folder of pairs")
    found = verify_pairs(store=store, remake=remake, fix=fix, **_asked(locals()))
    _show_checked(found)
    if not found.whole:
        raise typer.Exit(1)


@app.command("list")
def list_(
    folder: Annotated[Path | None, typer.Argument(help="Folder of such sets.  [default: that of the cache]")] = None,
) -> None:
    """What the cache holds: teacher, settings, number, size, place, and the runs that have read them."""
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.data.files import size_text
    from distillkit.files import cache_folder
    from distillkit.jobs.pair_sets import list_pairs

    out, sets = console(), list_pairs(folder)
    where = folder or cache_folder() / "pairs"
    if not sets:
        out.print(
            f"no pairs in {where}; `distillkit pairs make` and runs of dmd, kd or reflow make some", highlight=False
        )
        return
    table = Table()
    for title, right in (("name", False), ("teacher", False), ("made by", False), ("pairs", True), ("size", True),
                         ("used by", False)):  # fmt: skip
        table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for found in sets:
        guided = "" if found.guidance == 1 else f", guidance {found.guidance:g}"
        guided += f" with {found.guide}" if found.guide else ""
        runs = [Path(run).name for run in found.used_by]
        used = ", ".join(runs[-2:]) + (f" and {len(runs) - 2:,} more" if len(runs) > 2 else "")
        table.add_row(
            found.folder.name, found.teacher, f"{found.solver}, {found.steps} steps{guided}", f"{found.count:,}",
            size_text(found.bytes), used or "-",
        )  # fmt: skip
    out.print(table)
    total = sum(found.bytes for found in sets)
    out.print(f"{size_text(total)} in {where}; a set that no run needs can be deleted", highlight=False)


def _asked(values: dict[str, Any]) -> dict[str, Any]:
    """What was typed, as keywords of the functions that do it."""
    from distillkit.errors import UsageError
    from distillkit.runs.validation import set_values

    names = ("teacher", "method", "count", "steps", "solver", "guidance", "prompts", "prompts_column", "prompts_dtype",
             "resolution", "embedded_guidance", "guide_with", "part", "device", "timeout", "quiet")  # fmt: skip
    asked = {name: values[name] for name in names if values.get(name) is not None}
    if values["set_"]:
        if "method" not in asked:
            raise UsageError("--set is for settings of a run: name its --method")
        asked["values"] = set_values(values["set_"])
    return asked


def _show_plan(rows: list[tuple[str, str]]) -> None:
    from rich.table import Table

    from distillkit.cli.closing import console

    table = Table(title="Plan", show_header=False, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _show_checked(found: PairsChecked) -> None:
    from distillkit.cli.closing import console

    out = console()
    out.print(f"{found.checked:,} shards hashed in {found.folder}", highlight=False)
    if found.remade:
        out.print(
            f"{found.remade:,} pairs made again: they differ by at most {found.difference:.2g} (relative)",
            highlight=False,
        )
    for what, numbers in (("damaged", found.damaged), ("missing", found.missing)):
        if numbers:
            out.print(f"{len(numbers):,} {what}: {_few(numbers)}", highlight=False)
    if found.different:
        out.print(
            f"{len(found.different):,} pairs are not what the teacher makes: {_few(found.different)}; the rest of the "
            "set is to be doubted too", highlight=False,
        )  # fmt: skip
    if found.fixed:
        rest = "; verify again, with a larger --remake, before the others are used" if found.different else ""
        out.print(f"{found.fixed:,} shards were made anew{rest}", highlight=False)
    elif found.whole:
        out.print("everything is whole", highlight=False)
    else:
        out.print("next: the same command with --teacher and --fix makes them anew", highlight=False)


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
