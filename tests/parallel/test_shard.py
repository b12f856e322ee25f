"""Networks in parts give what whole ones give."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def ended_well(done):
    for rank, one in enumerate(done):
        assert one.stdout.split() == [f"done:{rank}"], one.stderr[-3000:]


@pytest.mark.parametrize(
    ("processes", "parallels", "steps"), [(3, "shard,replicate", 50), (4, "hybrid", 20)], ids=["shard", "hybrid"]
)
def test_several_processes_end_where_one_does(together, processes, parallels, steps):
    """On three a layer of five rows is shared unevenly, and a scalar not at all."""
    ended_well(together(HERE / "equality.py", parallels, str(steps), processes=processes))


def test_what_networks_in_parts_must_not_get_wrong(together, tmp_path):
    ended_well(together(HERE / "parts.py", tmp_path))
