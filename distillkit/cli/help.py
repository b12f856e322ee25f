"""Help of commands with many options: by section, names always whole, descriptions beside them or below."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand


class SectionedCommand(TyperCommand):
    """A command whose options are listed under the titles that they were declared with (`rich_help_panel`).

    Tables, as rich draws them, cut long names on narrow terminals; these lists never do.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def made_command(
    name: str, options: Sequence[inspect.Parameter], common: Callable[..., None], run: Callable[[dict[str, Any]], None],
    about: str,
) -> Any:  # fmt: skip
    """A command whose options are `common`'s parameters and `options`; `run` is given their values."""

    def command(**values: Any) -> None:
        run(values)

    made = [*inspect.signature(common, eval_str=True).parameters.values(), *options]
    command.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in made}
    command.__doc__ = about
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    single.command(name, cls=SectionedCommand)(command)
    return typer.main.get_command(single)
