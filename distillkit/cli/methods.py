"""`distillkit methods`: what is installed, and one method in full."""

from __future__ import annotations

from typing import Annotated

import typer

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
    table = Table("method", "what it does", "from")
    for name, installed in sorted(found.methods.items()):
        table.add_row(name, installed.value.summary(), installed.origin)
    out.print(table)
    for plugin in found.broken:
        out.print(f"broken: {plugin.name} ({plugin.origin}): {plugin.reason}", markup=False)
    for (kind, _), reason in found.refused.items():
        if kind == "methods":
            out.print(f"refused: {reason}", markup=False)
    out.print("distillkit methods show NAME explains a method, distillkit run NAME runs it.", highlight=False)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the method.")],
    teacher: Annotated[str, typer.Option(help="Show the settings that fit this teacher.")] = "digits",
) -> None:
    """A method's settings, presets and parts."""
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.cli.option_models import Section, describe
    from distillkit.engine.config import TrainingConfig
    from distillkit.registry import registry
    from distillkit.runs.config import PairsConfig
    from distillkit.models.store.resolve import known_as

    out = console()
    method = registry().method(name)
    installed = registry().methods[name]
    out.print(f"[bold]{name}[/bold]: {method.summary()}\nfrom {installed.origin}")
    preset = method.preset_for(known_as(teacher))
    settings, training, pairs = (preset.settings, preset.training, preset.pairs) if preset else ({}, {}, {})
    out.print(
        f"for the teacher {teacher}: "
        + (f"preset {preset.name} ({preset.source})" if preset else "no preset, defaults")
    )
    for section in (
        Section("settings", method.Config, f"Settings of {name}", preset=settings),
        Section("training", TrainingConfig, "Training", preset=training),
        Section("pairs", PairsConfig, "Noise-image pairs", preset=pairs),
    ):
        table = Table("setting", "value", "default", "meaning", title=section.title, title_justify="left")
        for row in describe(section):
            table.add_row(*row)
        out.print(table)
    others = ", ".join(f"{p.name} ({', '.join(p.teachers)})" for p in method.presets)
    out.print(f"presets: {others or 'none'}", highlight=False, markup=False)
