"""`distillkit methods`: what is installed, and one method in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from distillkit.registry import Installed

app = typer.Typer(
    rich_markup_mode=None,
    help="List the installed methods. `methods show NAME` explains one.",
    invoke_without_command=True,
)


@app.callback()
def methods(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand:
        return
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.registry import registry

    out, found = console(), registry()
    listed = sorted(found.named("methods").items())
    table = Table("method", "what it does", "known to go wrong", "from")
    for name, installed in listed:
        table.add_row(name, installed.value.summary(), installed.value.caution, installed.origin)
    out.print(table)
    _print_traits(listed)
    for plugin in found.broken:
        out.print(f"broken: {plugin.name} ({plugin.origin}): {plugin.reason}", markup=False)
    for (kind, _), reason in found.refused.items():
        if kind == "methods":
            out.print(f"refused: {reason}", markup=False)
    out.print("distillkit methods show NAME explains a method, distillkit run NAME runs it.", highlight=False)


def _print_traits(listed: Sequence[tuple[str, Installed]]) -> None:
    """What each of the methods takes on the default teacher; a method that fails there says why."""
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.errors import DistillkitError
    from distillkit.jobs.traits import COLUMNS, MEANING, traits_of
    from distillkit.models.store.resolve import default_teacher, load_teacher
    from distillkit.progress import Quiet

    out, teacher = console(), load_teacher(default_teacher(), Quiet())
    table = Table("method", *COLUMNS, title=f"on the teacher {teacher.spec.name}", title_justify="left")
    for name, installed in listed:
        try:
            table.add_row(name, *traits_of(installed, teacher).cells)
        except DistillkitError as error:
            table.add_row(name, f"cannot be tried: {error}")
    out.print(table)
    out.print(f"{MEANING}.", highlight=False)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the method, or a Python file that defines one.")],
    teacher: Annotated[
        str, typer.Option(help="Show the settings that fit this teacher.  [default: the embedded one]")
    ] = "",
) -> None:
    """A method's settings, presets and parts."""
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.cli.option_models import describe
    from distillkit.jobs.planned import method_offer
    from distillkit.models.store.resolve import default_teacher, preset_name
    from distillkit.runs.options import sections_of

    out, offer = console(), method_offer(name)
    method, known = offer.value, preset_name(teacher or default_teacher())
    out.print(f"{method.name}: {method.summary()}\nfrom {offer.origin}")
    if method.caution:
        out.print(f"known to go wrong: {method.caution}", highlight=False, markup=False)
    preset = method.preset_for(known)
    out.print(
        f"for the teacher {known}: " + (f"preset {preset.name} ({preset.source})" if preset else "no preset, defaults")
    )
    for section in sections_of(method, preset):
        table = Table("setting", "value", "default", "meaning", title=section.title, title_justify="left")
        for row in describe(section):
            table.add_row(*row)
        out.print(table)
    others = ", ".join(f"{p.name} ({', '.join(p.teachers)})" for p in method.presets)
    out.print(f"presets: {others or 'none'}", highlight=False, markup=False)
