"""What several workers begin with: the files that take longest, so that both end at the same time."""

from __future__ import annotations

import pytest

LONGEST = (
    "tests/testing/test_first_party.py", "tests/cli/test_run.py", "tests/cli/test_faults.py",
    "tests/engine/test_processes.py", "tests/cli/test_teachers.py", "tests/benchmark/test_ground_truth.py",
    "tests/cli/test_evaluate.py", "tests/test_guides.py", "tests/testing/test_mutations.py",
    "tests/benchmark/test_bench.py", "tests/test_notebook.py", "tests/models/test_diffusers.py",
    "tests/plugins/test_new_method.py", "tests/testing/test_kit.py", "tests/test_own_images.py",
    "tests/engine/test_kills.py",
)  # fmt: skip
"""The files of more than nine seconds, from the longest on; measured one after the other, on one core."""


def longest_first(items: list[pytest.Item]) -> None:
    """Sort the tests of long files before all others; within a file and among short files the order stays.

    With `--dist loadfile` a file stays on one worker, and `--no-loadscope-reorder` keeps xdist from sorting files by
    how many tests they have, which says little of how long they take.
    """
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))
