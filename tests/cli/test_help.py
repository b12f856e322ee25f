"""Help, listings, version, completion: quick and complete."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer

from distillkit import __version__
from distillkit.cli import _say_what_loads, app
from distillkit.cli.closing import show_result
from distillkit.cli.plugins import plugins
from distillkit.embedded.assets import shipped_records
from distillkit.evaluation.record import Record
from distillkit.jobs.rows import Row
from distillkit.progress import Terminal
from tests.conftest import environment


def test_version_and_help(cli):
    assert cli("--version").stdout == f"distillkit {__version__}\n"
    text = cli("--help").stdout
    for command in ("run", "sample", "methods", "teachers", "distillkit run dmd"):
        assert command in text
    bare = cli()
    assert bare.returncode == 2 and bare.stderr.lstrip().startswith("Usage: distillkit")
    assert "..." not in text.partition("Commands")[2].replace("ARGS]...", "")


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


@pytest.mark.parametrize("command", [("run", "dmd"), ("run", "consistency"), ("teachers", "train"), ("bench",)])
@pytest.mark.parametrize("columns", ["60", "80"])
def test_names_of_options_are_whole_on_narrow_terminals(inside, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", columns)
    group = typer.main.get_command(app)
    for word in command:
        group = group.get_command(group.make_context("distillkit", [], resilient_parsing=True), word)
    lines = inside(*command, "--help").stdout.splitlines()
    words = {word.strip(",") for line in lines for word in line.replace(" / ", " ").split()}
    names = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {name for name in names if name.startswith("--")} <= words
    assert max(map(len, lines)) <= int(columns) and "…" not in "".join(lines)


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


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("run d", {"dmd", "dmd2"}), ("run dmd --kl", {"--kl-weight"}), ("run dmd --optimizer rad", {"radam"}),
        ("run dmd --teacher mix", {"mixture"}), ("run dmd --protocol dig", {"digits8"}),
        ("run dmd --device mp", {"mps"}),
        ("run dmd --report-to tens", {"tensorboard"}), ("run dmd --resume ", {"runs/mine"}),
        ("bench --suite dig", {"digits"}), ("bench --methods kd,dmd2", {"kd,dmd2"}), ("sample runs/", {"runs/mine"}),
        ("evaluate --protocol dig", {"digits8"}), ("teachers train --arc", {"--arch"}),
    ],
)  # fmt: skip
def test_completion_offers_names_and_runs(tmp_path, monkeypatch, capsys, typed, offered):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    words = f"distillkit {typed}"
    monkeypatch.setenv("_DISTILLKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - (not words.endswith(" "))))
    with pytest.raises(SystemExit):
        app(args=[], prog_name="distillkit", standalone_mode=False)
    assert set(capsys.readouterr().out.split()) == offered


def test_a_second_completion_loads_no_torch(tmp_path):
    code = "import os, sys\nfrom distillkit.cli import names\nnames.known()\nassert 'torch' in sys.modules\n"
    own = {"DISTILLKIT_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment(own), check=True, capture_output=True)
    code = (
        "import sys; sys.argv = ['distillkit']\n"
        "from distillkit.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'accelerate', 'safetensors'} & set(sys.modules)"
    )
    asked = {
        "_DISTILLKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "distillkit run dmd --teacher dig",
        "COMP_CWORD": "4",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(own | asked), check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["digits"]


def test_python_dash_m(cli):
    done = subprocess.run(
        [sys.executable, "-m", "distillkit", "--version"], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == f"distillkit {__version__}\n"


def test_a_slow_start_says_what_it_waits_for_on_a_terminal_alone(monkeypatch, capsys):
    for terminal, initializing, said in ((True, True, True), (False, True, False), (True, False, False)):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(torch.__spec__, "_initializing", initializing)
        _say_what_loads()
        assert ("PyTorch" in capsys.readouterr().err) is said


def test_no_offer_of_a_plugin_is_cut_in_80_columns(monkeypatch, capsys):
    monkeypatch.setattr("distillkit.cli.closing.console", lambda: Terminal(width=80))
    plugins()
    shown = capsys.readouterr().out
    assert "…" not in shown and "edm-cifar10-uncond-ve" in shown and "distillkit_consistency" in shown


def test_the_closing_table_is_whole_in_80_columns(monkeypatch, capsys):
    record = Record.model_validate(next(iter(shipped_records().values())))
    rows = [Row(name, 35, 5215, record) for name in ("teacher, 18 Heun steps", "student, untrained")]
    run = SimpleNamespace(
        rows=rows, record=record, health={}, folder=Path("run"), summary={"selection": {}, "seconds": 60.0}
    )
    for width in (80, 100):
        monkeypatch.setattr("distillkit.cli.closing.console", lambda width=width: Terminal(width=width))
        show_result(run)
        table = capsys.readouterr().out.partition(f"{record.label}: ")[0].splitlines()
        assert max(map(len, table)) <= width
        assert any(record.label in line and "generator" in line for line in table)
        assert sum("teacher, 18 Heun steps" in line for line in table) == 1
