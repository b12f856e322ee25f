"""`distillkit check`: the conformance checks of a plugin's methods."""

from __future__ import annotations

from typing import Annotated

import typer


def check(
    name: Annotated[
        str, typer.Argument(metavar="PACKAGE", help="Installed package, plugin or method, or a Python file.")
    ],
) -> None:
    """Check a plugin's methods.

    What the engine and users rely on, on small networks: about half a minute for a method. Each failure says what is
    wrong, why it matters and how to fix it. Exit code 1 if anything failed.
    """
    from distillkit.cli.closing import console
    from distillkit.testing.run import outcomes
    from distillkit.testing.select import methods_of

    out, failed, count = console(), 0, 0
    for method in methods_of(name):
        out.print(f"{method.name}: {method.summary()}", markup=False, highlight=False)
        for outcome in outcomes(method):
            state = "failed" if outcome.failure else "ok"
            out.print(f"  {state:6} {outcome.check.replace('_', ' ')}  ({outcome.seconds:.1f} s)", markup=False,
                      highlight=False)  # fmt: skip
            if outcome.failure:
                out.print("         " + outcome.failure.replace("\n", "\n         "), markup=False, highlight=False)
            failed += bool(outcome.failure)
            count += 1
    out.print(f"{count - failed} of {count} checks passed", highlight=False)
    if failed:
        raise typer.Exit(1)
