"""Running the checks: all of them, one after the other, or as the parameters of a pytest test."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from distillkit.contracts.method import Method
from distillkit.testing.checks import cases
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import Settings


@dataclass(frozen=True)
class Outcome:
    """One check of one method with some settings; `failure` is empty where it passed."""

    method: str
    check: str
    seconds: float
    failure: str = ""


def check_method(method: type[Method], settings: Settings | None = None) -> None:
    """Run every check, with the method's defaults and each of its examples, or with `settings` alone.

    Raises:
        CheckFailure: for the first thing that the method breaks.
    """
    for _, check, given in cases(method, settings):
        check(method, given)


def outcomes(method: type[Method], settings: Settings | None = None) -> Iterator[Outcome]:
    """Every check's outcome as it comes; a check that raises something else has failed too."""
    for name, check, given in cases(method, settings):
        began, failure = time.monotonic(), ""
        try:
            check(method, given)
        except CheckFailure as error:
            failure = str(error)
        except Exception as error:  # a method may fail in any way
            failure = f"{type(error).__name__}: {error}"
        yield Outcome(method.name, name, time.monotonic() - began, failure)


def parametrize_with_checks(*methods: type[Method]) -> Callable[..., Any]:
    """A decorator for a pytest test that takes `check` and calls it: one test for each method, check and example."""
    import pytest

    found = [(f"{method.name}-{name}", functools.partial(check, method, given))
             for method in methods for name, check, given in cases(method)]  # fmt: skip
    return pytest.mark.parametrize("check", [check for _, check in found], ids=[name for name, _ in found])
