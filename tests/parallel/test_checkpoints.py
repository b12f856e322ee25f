"""Checkpoints of sharded trainings: every process writes its own, and any number of processes reads them."""

from pathlib import Path


def test_sharded_checkpoints_are_whole_for_any_reader(tmp_path, together):
    done = together(Path(__file__).parent / "sharded.py", tmp_path / "checkpoints", processes=3)
    assert [one.stdout.split() for one in done] == [[f"done:{k}"] for k in range(3)], own_failures(done)


def own_failures(done):
    """What the processes say that did not fail because another did."""
    return "\n".join(one.stderr[-3000:] for one in done if "closed by peer" not in one.stderr)
