"""`pytest --distillkit-check NAME`: the conformance checks of an installed package, plugin or method as tests.

Loaded by pytest wherever distillkit is installed, so it imports nothing before it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("distillkit").addoption(
        "--distillkit-check",
        action="append",
        default=[],
        metavar="NAME",
        help="run distillkit's conformance checks on an installed package, plugin or method",
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    names = config.getoption("--distillkit-check")
    if not names:
        return
    from distillkit.errors import DistillkitError
    from distillkit.testing.checks import cases
    from distillkit.testing.select import methods_of

    try:
        methods = [method for name in names for method in methods_of(name)]
    except DistillkitError as error:
        raise pytest.UsageError(str(error)) from error
    items += [
        ConformanceItem.from_parent(session, name=f"{method.name}::{name}", call=partial(check, method, settings))
        for method in methods
        for name, check, settings in cases(method)
    ]


class ConformanceItem(pytest.Item):
    """One check of one method with some settings."""

    def __init__(self, *, call: Callable[[], None], **rest: Any) -> None:
        super().__init__(**rest)
        self.call = call

    def runtest(self) -> None:
        self.call()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, AssertionError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, int | None, str]:
        return "distillkit", None, self.name
