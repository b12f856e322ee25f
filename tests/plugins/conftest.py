"""Packages from outside, installed for one test."""

import re
import sys
import textwrap
from pathlib import Path

import pytest

from distillkit.registry import registry

ROOT = Path(__file__).parents[2]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


README_METHOD = next(block for block in blocks("README.md") if "TrajectoryEndpoint" in block)
"""The method that the README shows: what a newcomer copies is what is tested."""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package with its metadata on the path: what `pip install` leaves behind, without pip.

    Returns a function; what it returns removes the package again.
    """
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    names = []

    def forget():
        for name in names:
            sys.modules.pop(name, None)
        registry.cache_clear()

    def put(name, code, entry=None, version="1.2"):
        (site / f"{name}.py").write_text(textwrap.dedent(code))
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[distillkit]\n{entry or name} = {name}\n")
        names.append(name)
        forget()

        def remove():
            for path in info.iterdir():
                path.unlink()
            info.rmdir()
            forget()

        return remove

    yield put
    monkeypatch.undo()
    forget()


@pytest.fixture
def short(tiny_teacher_folder):
    """Arguments of a run that ends in a moment."""
    return ["run", "endpoints", "--teacher", tiny_teacher_folder, "--duration", "64", "--batch", "16", "--pairs-count",
            "16", "--evaluation-samples", "100", "--output-dir", "run"]  # fmt: skip
