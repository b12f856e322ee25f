"""What several workers begin with: the files that take longest, so that both end at the same time."""

from __future__ import annotations

import pytest

LONGEST = (
    "tests/testing/test_first_party.py", "tests/parallel/test_shard.py", "tests/cli/test_run.py",
    "tests/parallel/test_checkpoints.py", "tests/jobs/test_text_teachers.py", "tests/parallel/test_expected.py",
    "tests/cli/test_teachers.py", "tests/adapters/test_sharing.py", "tests/engine/test_processes.py",
    "tests/testing/test_mutations.py",
    "tests/models/test_families.py", "tests/cli/test_faults.py", "tests/students/test_plain_pipeline.py",
    "tests/benchmark/test_ground_truth.py", "tests/test_guides.py", "tests/models/test_diffusers.py",
    "tests/test_notebook.py", "tests/plugins/test_new_method.py", "tests/parts/test_distances.py",
    "tests/cli/test_evaluate.py", "tests/cli/test_train_parts.py", "tests/engine/test_checkpoints.py",
    "tests/testing/test_kit.py", "tests/engine/test_kills.py", "tests/test_warm.py", "tests/test_tuning.py",
    "tests/models/test_pipeline_options.py", "tests/plugins/test_third_party.py",
)  # fmt: skip
"""The files that take more than a sixtieth of the whole time, from the longest on, by their CPU time."""


def longest_first(items: list[pytest.Item]) -> None:
    """Sort the tests of long files before all others; within a file and among short files the order stays.

    With `--dist loadfile` a file stays on one worker, and `--no-loadscope-reorder` keeps xdist from sorting files by
    how many tests they have, which says little of how long they take.
    """
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))
