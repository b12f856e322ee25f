"""Running the checks: all of them, one after the other, or as the parameters of a pytest test."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from distillkit.contracts.method import Method
from distillkit.testing.checks import CHECKS
from distillkit.testing.failure import CheckFailure


@dataclass(frozen=True)
class Outcome:
    """One check of one method; `failure` is empty where it passed."""

    method: str
    check: str
    seconds: float
    failure: str = ""


def check_method(method: type[Method]) -> None:
    """Run every check.

    Raises:
        CheckFailure: for the first thing that the method breaks.
    """
    for check in CHECKS.values():
        check(method)


def outcomes(method: type[Method]) -> Iterator[Outcome]:
    """Every check's outcome as it comes; a check that raises something else has failed too."""
    for name, check in CHECKS.items():
        began, failure = time.monotonic(), ""
        try:
            check(method)
        except CheckFailure as error:
            failure = str(error)
        except Exception as error:  # a method may fail in any way
            failure = f"{type(error).__name__}: {error}"
        yield Outcome(method.name, name, time.monotonic() - began, failure)


def parametrize_with_checks(*methods: type[Method]) -> Callable[..., Any]:
    """A decorator for a pytest test that takes `check` and calls it: one test for each method and check."""
    import pytest

    checks = [functools.partial(check, method) for method in methods for check in CHECKS.values()]
    names = [f"{method.name}-{name}" for method in methods for name in CHECKS]
    return pytest.mark.parametrize("check", checks, ids=names)
