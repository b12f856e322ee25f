"""Gradients of whole networks are averaged in buckets, whatever comes when and where."""

from pathlib import Path


def test_processes_average_what_they_have(together):
    done = together(Path(__file__).parent / "averaging.py", processes=3)
    assert [one.stdout.split() for one in done] == [[f"done:{rank}"] for rank in range(3)], done[0].stderr[-3000:]
