"""A conformance kit for methods: what the engine and the users rely on, checked on small networks in seconds.

>>> from distillkit.testing import check_method            # doctest: +SKIP
>>> check_method(MyMethod)                                 # doctest: +SKIP

In a plugin's own tests, one test for each check:

    from distillkit.testing import parametrize_with_checks

    @parametrize_with_checks(MyMethod)
    def test_conformance(check):
        check()

The same from the command line: `distillkit check PACKAGE`, or `pytest --distillkit-check PACKAGE`.
"""

from distillkit.testing.checks import CHECKS
from distillkit.testing.failure import CheckFailure
from distillkit.testing.run import Outcome, check_method, outcomes, parametrize_with_checks

__all__ = ["CHECKS", "CheckFailure", "Outcome", "check_method", "outcomes", "parametrize_with_checks"]
