"""Methods from outside: found by entry points, run by the engine, named when they are broken."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from distillkit.registry import load_file, registry
from distillkit.testing import CHECKS
from tests.plugins.conftest import README_METHOD, blocks

LOSS = "pseudo_huber(step.student(pairs.noise, pairs.condition), pairs.sample).mean()"
assert LOSS in README_METHOD and "needs = (Pairs,)" in README_METHOD and "        pairs = step.pairs\n" in README_METHOD


def words(text):
    return " ".join(text.replace("│", " ").split())


def test_a_third_partys_method_is_listed_explained_run_and_sampled(install, inside, tmp_path, short, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    remove = install("my_kd", README_METHOD)
    listed = inside("methods").stdout
    assert "endpoints" in listed and "my_kd 1.2" in listed and "dmd" in listed
    assert "--weight" in inside("run", "endpoints", "--help").stdout
    assert "settings.weight" in inside("methods", "show", "endpoints").stdout
    done = inside(*short, "--duration", "320", "--weight", "2", "--lr", "1e-3")
    assert done.returncode == 0, done.stderr
    assert "endpoints from my_kd 1.2" in (tmp_path / "run" / "student" / "README.md").read_text()
    # The student needs neither the plugin nor the teacher any more.
    remove()
    assert "endpoints" not in registry().named("methods")
    sampled = inside("sample", "run", "--num", "4", "--output", "grid.png")
    assert sampled.returncode == 0, sampled.stderr


@pytest.mark.parametrize("check", ["config_round_trips", "needs_are_what_is_used", "settings_change_the_training"])
def test_the_readmes_method_conforms(install, check):
    install("my_kd", README_METHOD)
    CHECKS[check](registry().named("methods")["endpoints"].value, {})


BROKEN = {
    "import": ("import no_such_module", ["ModuleNotFoundError", "no_such_module"]),
    "syntax": ("def broken(:", ["SyntaxError"]),
    "hook": (
        "from distillkit import hookimpl\n@hookimpl\ndef distillkit_methods():\n    raise RuntimeError('no licence')",
        ["RuntimeError", "no licence"],
    ),
    "offer": (
        "from distillkit import hookimpl\n@hookimpl\ndef distillkit_methods():\n    return ['kd']",
        ["TypeError", "'kd'"],
    ),
    "unknown hook": (
        "from distillkit import hookimpl\n@hookimpl\ndef distillkit_metods():\n    return []",
        ["distillkit_metods"],
    ),
    "version": ("DISTILLKIT_API = 1", ["version 1", "upgrade bad_plugin"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_and_everything_else_works(install, inside, kind, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    code, named = BROKEN[kind]
    install("bad_plugin", code, entry="bad")
    [broken] = registry().broken
    assert (broken.name, broken.origin) == ("bad", "bad_plugin 1.2") and all(text in broken.reason for text in named)
    listed = inside("methods")
    assert listed.returncode == 0 and "dmd" in listed.stdout and "bad_plugin 1.2" in words(listed.stdout)
    asked = inside("run", "bad")
    assert asked.returncode == 2 and "bad_plugin" in asked.stderr


def test_a_plugin_that_cannot_be_imported_leaves_the_program_whole(install, tmp_path):
    """In a process of its own: nothing of the program imports what is broken."""
    install("bad_plugin", "import no_such_module")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "200"}
    for arguments, said, code in ((["--help"], "run", 0), (["plugins"], "no_such_module", 1)):
        done = subprocess.run(
            [sys.executable, "-m", "distillkit", *arguments], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == code and said in words(done.stdout), done.stderr


def test_a_name_that_two_plugins_offer_is_refused_for_both(install, inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    install("my_kd", README_METHOD)
    install("other_kd", README_METHOD)
    assert "endpoints" not in registry().named("methods")
    reason = registry().refused["methods", "endpoints"]
    assert "my_kd 1.2" in reason and "other_kd 1.2" in reason
    assert "other_kd 1.2" in words(inside("methods").stdout)
    asked = inside("run", "endpoints")
    assert asked.returncode == 2 and reason in words(asked.stderr)


MISBEHAVED = {
    "returns nothing": ("None", "", ["trajectory_endpoint", "NoneType"]),
    "returns a batch": ("step.samples", "", ["trajectory_endpoint", "(16, 1, 8, 8)"]),
    "detached": ("step.samples.detach().mean()", "", ["gradient", "trajectory_endpoint"]),
    "raises": ("1 / 0", "", ["my_kd.TrajectoryEndpoint", "step 1", "ZeroDivisionError"]),
    "undeclared": ("step.images.sample.mean()", "", ["needs = (Images,)"]),
    "wrong shape": ("(step.samples - step.samples[:, :, :3]).mean()", "", ["step 1", "size"]),
    "not a number": ("step.samples.mean() * float('nan')", "", ["loss/trajectory_endpoint", "not finite"]),
    "too much memory": ("step.samples.mean() + torch.empty(10**15).sum()", "import torch", ["--batch-per-device"]),
}


def with_loss(expression, needs="Samples"):
    """The README's method with another loss."""
    code = README_METHOD.replace("        pairs = step.pairs\n", "").replace(LOSS, expression)
    return f"from distillkit import Images, Samples\n{code}".replace("needs = (Pairs,)", f"needs = ({needs},)")


@pytest.mark.parametrize("kind", MISBEHAVED)
def test_a_plugin_that_misbehaves_is_one_clear_error(install, inside, short, kind):
    expression, extra, named = MISBEHAVED[kind]
    install("my_kd", f"{extra}\n{with_loss(expression)}")
    done = inside(*short)
    assert done.returncode == 1, done.stderr
    assert all(text in words(done.stderr) for text in named), done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_that_fails_names_the_plugin(install, inside, short):
    install("my_kd", README_METHOD.replace("StudentGenerator.from_teacher(teacher)", "teacher.unet"))
    done = inside(*short)
    assert done.returncode == 1 and "my_kd 1.2" in done.stderr and "AttributeError" in done.stderr


def test_collapse_is_seen_and_shown_once(install, inside, short):
    code = README_METHOD.replace(
        "    needs = (",
        "    diagnostics = (Diagnostic('spread', (0.5, 2), (0.1, 9), 'of the samples'),)\n    needs = (",
    ).replace(
        "        pairs = step.pairs\n",
        "        pairs = step.pairs\n        step.log('spread', pairs.noise.std() * 0)\n",
    )
    install("my_kd", f"from distillkit import Diagnostic\n{code}")
    done = inside(*short)
    assert done.returncode == 0, done.stderr
    assert "spread collapsed" in words(done.stdout) and words(done.stdout).count("(healthy: 0.5 to 2)") == 1


def test_a_method_that_needs_real_images_gets_the_teachers_or_the_named_ones(install, inside, tmp_path, short):
    expression = "(step.samples.mean(0) - step.images.sample.mean(0)).square().mean()"
    install("my_images", with_loss(expression, "Images, Samples"))
    for k in range(6):
        (tmp_path / "pictures" / str(k % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9), 40 * k, np.uint8)).save(tmp_path / "pictures" / str(k % 2) / f"{k}.png")
    wrong = inside(*short[:-1], "other", "--data", "pictures")
    assert wrong.returncode == 2 and "--data-resolution 8" in wrong.stderr
    assert not (tmp_path / "other").exists()
    right = inside(*short[:-1], "named", "--data", "pictures", "--data-resolution", "8")
    assert right.returncode == 0, right.stderr


EXTRACTOR = next(block for block in blocks("docs/protocols.md") if "hookimpl" in block)


def test_a_third_partys_extractor_makes_references_and_figures(install, inside, tmp_path, tiny_teacher_folder):
    install("my_features", EXTRACTOR)
    (tmp_path / "pictures").mkdir()
    for k in range(30):
        Image.fromarray(np.full((8, 8), 8 * k, np.uint8)).save(tmp_path / "pictures" / f"{k}.png")
    made = inside("reference", "make", "--data", "pictures", "--extractor", "brightness", "-o", "ref.safetensors")
    assert made.returncode == 0, made.stderr
    done = inside(
        "evaluate", tiny_teacher_folder, "--extractor", "brightness", "--reference", "ref.safetensors",
        "--samples", "50", "-o", "r.json",
    )  # fmt: skip
    assert done.returncode == 0 and "FD[brightness/moments]-50" in done.stdout, done.stderr
    install("bad_features", EXTRACTOR.replace("super().__init__()", "1 / 0").replace('"brightness"', '"dim"'))
    failed = inside("evaluate", tiny_teacher_folder, "--extractor", "dim", "--reference", "ref.safetensors")
    assert failed.returncode == 1 and "bad_features 1.2" in failed.stderr and "ZeroDivisionError" in failed.stderr


def test_a_method_in_a_file_is_run_without_packaging_it(inside, tmp_path, short):
    from distillkit.registry import _FILES

    (tmp_path / "mine.py").write_text(README_METHOD)
    try:
        done = inside("run", "mine.py", *short[2:])
        assert done.returncode == 0, done.stderr
        assert registry().named("methods")["endpoints"].package == "mine.py"
        assert load_file(tmp_path / "mine.py") is load_file(str(tmp_path / "mine.py")), "a file is executed once"
        (tmp_path / "two.py").write_text(f"{README_METHOD}\n\nclass Second(Endpoints):\n    name = 'second'\n".replace(
            "return [Endpoints]", "return [Endpoints, Second]"))  # fmt: skip
        several = inside("run", "two.py", *short[2:])
        assert several.returncode == 2 and "endpoints" in several.stderr and "second" in several.stderr
    finally:
        _FILES.clear()
        registry.cache_clear()
