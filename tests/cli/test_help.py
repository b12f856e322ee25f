"""Help, listings, version, completion: quick and complete."""

import subprocess
import sys

from distillkit import __version__
from tests.conftest import environment


def test_version_and_help(cli):
    assert cli("--version").stdout == f"distillkit {__version__}\n"
    text = cli("--help").stdout
    for command in ("run", "sample", "methods", "teachers", "distillkit run dmd"):
        assert command in text
    assert cli().returncode == 2


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['distillkit', '--help']\n"
        "from distillkit.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'accelerate', 'safetensors', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, capture_output=True)


def test_a_methods_help_has_its_own_options_with_bounds_and_presets(inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(inside("run", "dmd", "--help").stdout.split())
    for fragment in ("--kl-weight", "--batch-per-device", "--pairs-count", "--ema-halflife", "digits preset",
                     "--student", "--start-ratio", "--protocol",
                     "Settings of dmd", "--resume", "--report-to", "> 0, <= 1"):  # fmt: skip
        assert fragment in text
    assert "dmd" in inside("run", "--help").stdout


def test_listings(inside):
    assert "dmd" in inside("methods").stdout
    shown = inside("methods", "show", "dmd", "--teacher", "edm-imagenet64").stdout
    assert "2e-06" in shown and "Yin et al. 2024" in shown
    assert "digits" in inside("teachers").stdout
    teacher = inside("teachers", "show", "digits").stdout
    for fragment in ("10 classes", "NFE 35", "FD[digits8cnn/fc64]", "Apache-2.0"):
        assert fragment in teacher


def test_completion_script(cli):
    done = cli(
        "--show-completion", "bash", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "SHELL": "/bin/bash"}
    )
    assert done.returncode == 0 and "_DISTILLKIT_COMPLETE" in done.stdout
    completed = cli(env={"_DISTILLKIT_COMPLETE": "complete_bash", "COMP_WORDS": "distillkit meth", "COMP_CWORD": "1"})
    assert "methods" in completed.stdout


def test_python_dash_m(cli):
    done = subprocess.run(
        [sys.executable, "-m", "distillkit", "--version"], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == f"distillkit {__version__}\n"
