"""What a message suggests is right: its commands are parsed by the real command line, and the ones of a run are run."""

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

import distillkit
from distillkit.cli import app

PACKAGE = Path(distillkit.__file__).parent
COMMANDS = "run|sample|evaluate|compare|bench|export|methods|teachers|protocols|reference|check|new-method|plugins"
COMMAND = re.compile(rf"distillkit ((?:{COMMANDS})\b[^`\n;|(,]*)")
PLACES = {"NAME": "filled", "METHOD": "dmd", "IMAGES": "pictures", "SUBJECT": "digits", "PACKAGE": "dmd"}


def texts(tree):
    """All texts of a module that are shown, with whatever is filled in as a word; documentation is not."""
    documentation = {
        id(node.body[0].value) for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
        and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "filled" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation | inner:
            yield node.value


def suggestions():
    for file in sorted(PACKAGE.rglob("*.py")):
        for text in texts(ast.parse(file.read_text())):
            for found in COMMAND.findall(text):
                yield f"{file.relative_to(PACKAGE)}", found.strip(" .\"'")


FOUND = sorted(set(suggestions()))


def test_suggestions_are_found():
    assert len(FOUND) > 20
    assert any("teachers fetch" in command for _, command in FOUND)


@pytest.mark.parametrize(("file", "command"), FOUND)
def test_every_suggested_command_exists_with_its_options(file, command):
    words = [PLACES.get(word, word) for word in shlex.split(command.replace("&&", " ").split(" shows ")[0])]
    group = typer.main.get_command(app)
    context = group.make_context("distillkit", [], resilient_parsing=True)
    while hasattr(group, "commands"):
        name = words.pop(0) if words and not words[0].startswith("-") else None
        if name is None:
            return
        found = group.get_command(context, "dmd" if name == "filled" else name)
        assert found is not None, f"{file}: {command}"
        group = found
    known = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }
    for word in words:
        if word.startswith("--") and word != "--help":
            assert word.partition("=")[0] in known, f"{file}: {command}: {word}"


def test_the_commands_that_a_run_suggests_work(inside, small_run, tmp_path):
    done = inside(*small_run, "--output-dir", "my run", "--duration", "32", "--protocol", "none")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("next: distillkit ")]
    sampled = inside(*shlex.split(line.removeprefix("next: distillkit ")))
    assert sampled.returncode == 0, sampled.stderr
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 100
    again = inside("run", "dmd", "--resume", "my run")
    assert again.returncode == 2 and "distillkit sample 'my run'" in again.stderr
    compared = inside("compare", "my run")
    assert compared.returncode == 2 and "distillkit evaluate 'my run'" in compared.stderr


def test_samples_become_an_array_a_grid_or_a_folder_as_the_name_says(inside, tiny_teacher_folder, tmp_path):
    for output in ("out.npz", "out.png", "out"):
        done = inside("sample", tiny_teacher_folder, "--num", "3", "--output", output)
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as made:
        assert made["arr_0"].shape == (3, 8, 8, 1)
    assert (tmp_path / "out.png").is_file() and len(list((tmp_path / "out").glob("*.png"))) == 3
    refused = inside("sample", tiny_teacher_folder, "--output", "out.jpg")
    assert refused.returncode == 2 and "out.jpg" in refused.stderr and not (tmp_path / "out.jpg").exists()


def test_points_are_drawn_in_the_range_of_the_data_with_as_many_as_show_it(inside, tmp_path):
    done = inside("sample", "mixture", "--output", "points.png")
    assert done.returncode == 0 and "8192" in done.stdout, done.stderr
    with Image.open(tmp_path / "points.png") as picture:
        dark = np.argwhere(np.asarray(picture) < 200)
    assert (dark.min(0) < np.asarray(picture.size) * 0.25).all() and (
        dark.max(0) > np.asarray(picture.size) * 0.75
    ).all()


@pytest.mark.parametrize(("given", "meant"), [("lr=3", "training.lr"), ("duration=3", "training.duration"),
                                              ("training.lrr=3", "lr")])  # fmt: skip
def test_an_unknown_setting_is_answered_about_set(inside, given, meant):
    refused = inside("run", "dmd", "--set", given)
    assert refused.returncode == 2
    assert f"--set {given.partition('=')[0]}:" in refused.stderr and f"Did you mean '{meant}'?" in refused.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "run consistency --guidance-min 5 --guidance-max 4 --teacher mixture",
            "guidance_min 5 must be at most guidance_max 4",
        ),
        ("run ect --curriculum ict --first-levels 9 --last-levels 8", "first_levels 9 must be at most last_levels 8"),
        ("run kd --resolution 64x", "--resolution: write the side of a square"),
        ("teachers train shapes --part nonsense", "'--part': 'nonsense' is not one of"),
        ("teachers sample digits --resolution 32", "--resolution 32x32 is for pipelines of diffusers"),
        ("sample nothing", "no student in nothing, and no teacher either"),
    ],
)
def test_a_wrong_setting_is_answered_in_words_for_people(inside, command, message, tmp_path):
    done = inside(*command.split())
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and message in said, done.stderr
    assert "Value error" not in said and "a dict" not in said and "--settings" not in said
    assert ("no student" in said) == (command == "sample nothing")
    assert not any(tmp_path.iterdir())


def test_settings_of_a_file_that_contradict_each_other_name_the_file(inside, tmp_path):
    (tmp_path / "settings.yaml").write_text(
        "method: ect\nsettings: {curriculum: ict, first_levels: 9, last_levels: 8}\n"
    )
    done = inside("run", "ect", "--config", "settings.yaml")
    assert done.returncode == 2 and "settings.yaml:2: settings: first_levels 9 must be at most" in done.stderr
