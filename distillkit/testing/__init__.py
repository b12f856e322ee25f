"""A conformance kit for methods: what the engine and the users rely on, checked on small networks in seconds.

>>> from distillkit.testing import check_method            # doctest: +SKIP
>>> check_method(MyMethod)                                 # doctest: +SKIP
>>> check_method(MyMethod, settings={"guidance": 2.0})     # doctest: +SKIP

Every check runs with the method's defaults and with each of `Method.examples`. In a plugin's own tests, one test for
each check and setting:

    from distillkit.testing import parametrize_with_checks

    @parametrize_with_checks(MyMethod)
    def test_conformance(check):
        check()

The same from the command line: `distillkit check PACKAGE`, or `pytest --distillkit-check PACKAGE`.

Names are imported on first use: pytest loads the plugin in this package wherever distillkit is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillkit.testing.checks import CHECKS as CHECKS
    from distillkit.testing.failure import CheckFailure as CheckFailure
    from distillkit.testing.run import Outcome as Outcome
    from distillkit.testing.run import check_method as check_method
    from distillkit.testing.run import outcomes as outcomes
    from distillkit.testing.run import parametrize_with_checks as parametrize_with_checks
    from distillkit.testing.teachers import TEACHERS as TEACHERS

_HOME = {
    "CHECKS": "checks",
    "CheckFailure": "failure",
    "Outcome": "run",
    "TEACHERS": "teachers",
    "check_method": "run",
    "outcomes": "run",
    "parametrize_with_checks": "run",
}

__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'distillkit.testing' has no attribute {name!r}")
    return getattr(import_module(f"distillkit.testing.{_HOME[name]}"), name)
