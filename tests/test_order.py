"""The order of files for several workers."""

from pathlib import Path
from types import SimpleNamespace

from tests.order import LONGEST, longest_first

ROOT = Path(__file__).parents[1]


def test_the_files_that_come_first_are_there():
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == [] and len(set(LONGEST)) == len(LONGEST)


def test_long_files_come_first_and_a_files_tests_stay_in_order():
    short, last, first = "tests/test_files.py", LONGEST[-1], LONGEST[0]
    items = [SimpleNamespace(nodeid=f"{name}::{test}") for name in (short, last, first) for test in ("b", "a")]
    longest_first(items)
    assert [item.nodeid for item in items] == [
        f"{name}::{test}" for name in (first, last, short) for test in ("b", "a")
    ]
