"""`distillkit protocols`: how figures are measured, and the files that this takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from distillkit.evaluation.presets import ProtocolPreset

app = typer.Typer(
    rich_markup_mode=None,
    help="List the evaluation protocols. `show` explains one, `fetch` gets its files, `pin` records a hash.",
    invoke_without_command=True,
)


@app.callback()
def protocols(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand:
        return
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.evaluation.presets import OwnMeasure, presets

    out = console()
    table = Table()
    for title in ("protocol", "what it measures", "samples", "extractor"):
        table.add_column(title, no_wrap=title == "protocol")
    for preset in presets().values():
        if isinstance(preset, OwnMeasure):
            table.add_row(preset.name, preset.title, "its own", "its own")
        else:
            table.add_row(preset.name, preset.title, f"{preset.count:,}", preset.extractor)
    out.print(table)
    out.print("Figures compare exactly when their protocol ids are equal.\nnext: distillkit protocols show NAME",
              highlight=False)  # fmt: skip


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of the protocol, or a file of reference statistics.")]) -> None:
    """Everything that the protocol's identity is made of."""
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.errors import DistillkitError
    from distillkit.evaluation.presets import is_reference, load_measure, preset
    from distillkit.evaluation.reference_files import pinned

    out, chosen = console(), None if is_reference(name) else preset(name)
    try:
        protocol = load_measure(name).protocol
    except DistillkitError as error:
        if chosen is None:
            raise
        table = Table(show_header=False, title=name, title_justify="left")
        for key, value in chosen.model_dump(exclude={"name", "teachers"}).items():
            table.add_row(key, str(value))
        table.add_row("recorded hash", pinned(name) or "none")
        out.print(table)
        out.print(f"not ready: {error}", markup=False, highlight=False)
        return
    table = Table(show_header=False, title=f"{name}  {protocol.id}", title_justify="left")
    table.add_row("label", protocol.label)
    for part, fields in protocol.model_dump(exclude={"name"}, exclude_none=True).items():
        for key, value in fields.items():
            table.add_row(f"{part}.{key}", str(value))
    out.print(table)


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="Name of the protocol.")]) -> None:
    """Download the protocol's network (sha256 checked) and reference statistics; shows the hash to pin."""
    from distillkit.cli.closing import console
    from distillkit.engine.interrupt import stop_on_signal
    from distillkit.errors import DistillkitError
    from distillkit.evaluation.reference_files import fetch_files, reference_of
    from distillkit.progress import reporter_for

    chosen, out = file_protocol(name), console()
    with stop_on_signal() as stop:
        paths = fetch_files(chosen, reporter_for(), lambda: stop.signum or 0)
    for path in paths:
        out.print(f"{path}", highlight=False, soft_wrap=True)
    try:
        reference_of(chosen)
        out.print(f"{name} is ready")
    except DistillkitError as error:
        out.print(str(error), markup=False, highlight=False, soft_wrap=True)


@app.command()
def pin(
    name: Annotated[str, typer.Argument(help="Name of the protocol.")],
    sha256: Annotated[str, typer.Option(help="Hash of the reference numbers that you trust.")] = "",
    prompts_sha256: Annotated[
        str, typer.Option("--prompts-sha256", help="Hash of the prompts that you trust, where it has some.")
    ] = "",
) -> None:
    """Record the hash of a protocol's reference numbers or prompts; anything else is refused from then on."""
    from distillkit.cli.closing import console
    from distillkit.errors import UsageError
    from distillkit.evaluation.reference_files import PROMPTS, lock_file
    from distillkit.evaluation.reference_files import pin as record

    chosen = file_protocol(name)
    if prompts_sha256 and not chosen.prompts:
        raise UsageError(f"{name} has no prompts: leave --prompts-sha256 out")
    given = {"--sha256": (sha256, chosen.name), "--prompts-sha256": (prompts_sha256, chosen.name + PROMPTS)}
    if not any(value for value, _ in given.values()):
        raise UsageError("give --sha256 or --prompts-sha256")
    for option, (value, _) in given.items():
        if value and (len(value) != 64 or set(value) - set("0123456789abcdef")):
            raise UsageError(f"{option} {value}: a hash has 64 hexadecimal characters")
    for value, key in given.values():
        if value:
            record(key, value)
    console().print(f"recorded in {lock_file()}", highlight=False, soft_wrap=True, markup=False)


def file_protocol(name: str) -> ProtocolPreset:
    """A protocol whose reference statistics are a file.

    Raises:
        UsageError: for an unknown one, or one whose reference comes with its package.
    """
    from distillkit.errors import UsageError
    from distillkit.evaluation.presets import OwnMeasure, preset

    chosen = preset(name)
    if isinstance(chosen, OwnMeasure) or not chosen.reference.file:
        raise UsageError(f"{name} needs no files: its reference comes with the package that offers it")
    return chosen
