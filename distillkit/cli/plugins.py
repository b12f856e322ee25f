"""`distillkit plugins`: what is installed, from where, what it offers, and what is broken and why."""

from __future__ import annotations

import typer


def plugins() -> None:
    """List the installed plugins.

    What each offers, and what is wrong with those that cannot be used. Exit code 1 if there is one.
    """
    from rich.table import Table

    from distillkit.cli.closing import console
    from distillkit.contracts.hooks import API_VERSION
    from distillkit.registry import registry

    out, found = console(), registry()
    # The module stands below its package: three columns leave room for the longest name in 80 columns.
    table = Table()
    for name in ("plugin", "from", "offers"):
        table.add_column(name, overflow="fold")
    for plugin in found.plugins:
        offers = [f"{kind}: {', '.join(named)}" for kind, named in plugin.offers.items() if named]
        said = f"broken: {plugin.reason}" if plugin.reason else "\n".join(offers) or "nothing"
        table.add_row(plugin.name, f"{plugin.origin}\n{plugin.module}", said)
    out.print(table)
    for reason in found.refused.values():
        out.print(f"refused: {reason}", markup=False, highlight=False)
    out.print(
        f"plugin interface {API_VERSION}\nnext: distillkit check PACKAGE shows a plugin's author what it breaks; "
        "distillkit new-method NAME starts one",
        highlight=False,
    )
    if found.broken or found.refused:
        raise typer.Exit(1)
