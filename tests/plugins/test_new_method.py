"""`distillkit new-method`: the project is built, installed into an environment of its own, and works there."""

import ast
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
import yaml

from distillkit.testing import CHECKS
from tests.conftest import environment


def test_a_new_project_is_complete_and_refuses_to_overwrite(inside, tmp_path):
    made = inside("new-method", "my_method")
    assert made.returncode == 0 and "pip install -e my-method" in made.stdout
    folder = tmp_path / "my-method"
    for name in ("pyproject.toml", "README.md", ".gitignore", "my_method/objective.py", "tests/test_conformance.py"):
        assert (folder / name).is_file()
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text())
        assert all(len(line) <= 120 for line in path.read_text().splitlines())
    assert yaml.safe_load((folder / ".github/workflows/tests.yml").read_text())["jobs"]
    again = inside("new-method", "my-method")
    assert again.returncode == 2 and "is there already" in again.stderr


@pytest.mark.parametrize("name", ["dmd", "1st", "my.method", "../x", "class", ""])
def test_bad_names_are_refused(inside, tmp_path, name):
    refused = inside("new-method", name)
    assert refused.returncode == 2 and not any(tmp_path.iterdir()), refused.stderr


@pytest.fixture
def fresh(tmp_path):
    """A new environment that sees the packages of this one, and nothing of the plugin."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # As `.pth` files do for editable installs: this environment's own are read too.
    (site / "surroundings.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in here))
    return python, site


ALL = """
import sys
import pytest
from distillkit.cli import app

app(["plugins"], standalone_mode=False)
app(["run", *sys.argv[1:]], standalone_mode=False)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider"]))
"""
"""One interpreter for all: each would import torch."""


def test_the_project_builds_installs_and_runs(inside, tmp_path, fresh, tiny_teacher_folder):
    python, site = fresh
    assert inside("new-method", "my-method").returncode == 0
    folder = tmp_path / "my-method"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=folder, check=True, capture_output=True
    )
    [wheel] = (folder / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)  # what installing a wheel of pure Python does

    (folder / "all.py").write_text(ALL)
    short = ["--duration", "640", "--pairs-count", "16", "--evaluation-samples", "100", "--quiet"]
    arguments = ["my-method", "--teacher", str(tiny_teacher_folder), *short, "--output-dir", "run"]
    done = subprocess.run(
        [str(python), "all.py", *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("my-method 0.1.0", "student, distilled", f"{len(CHECKS) + 1} passed"):
        assert said in done.stdout
    assert (folder / "run" / "student" / "model.safetensors").is_file()
