"""Plugins from outside: found by entry points, run by the engine, named when they are broken."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
KD = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "TrajectoryEndpoint" in block)
"""The plugin that the README shows: what a newcomer copies is what is tested."""


@pytest.fixture
def install(tmp_path):
    """Put a package with its metadata on the path: what `pip install` leaves behind, without pip."""
    site = tmp_path / "site"
    site.mkdir()

    def put(name, code, entry=None, version="1.2"):
        (site / f"{name}.py").write_text(textwrap.dedent(code))
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[distillkit]\n{entry or name} = {name}\n")
        return {"PYTHONPATH": str(site)}

    return put


def short(teacher):
    """Arguments of a run that ends in a moment."""
    return ["run", "endpoints", "--teacher", teacher, "--duration", "64", "--batch", "16", "--pairs-count", "16",
            "--evaluation-samples", "100", "--output-dir", "run"]  # fmt: skip


def test_a_third_partys_method_is_listed_explained_run_and_sampled(install, cli, tmp_path, tiny_teacher_folder):
    env = install("my_kd", KD)
    listed = cli("methods", env=env).stdout
    assert "endpoints" in listed and "my_kd 1.2" in listed and "dmd" in listed
    assert "--weight" in cli("run", "endpoints", "--help", env=env).stdout
    assert "settings.weight" in cli("methods", "show", "endpoints", env={**env, "COLUMNS": "200"}).stdout
    done = cli(*short(tiny_teacher_folder), "--duration", "320", "--weight", "2", "--lr", "1e-3", env=env)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "endpoints from my_kd 1.2" in card
    # The student needs neither the plugin nor the teacher any more.
    sampled = cli("sample", "run", "--num", "4", "--output", "grid.png")
    assert sampled.returncode == 0, sampled.stderr


BROKEN = {
    "import": ("import no_such_module", ["ModuleNotFoundError", "no_such_module"]),
    "syntax": ("def broken(:", ["SyntaxError"]),
    "hook": (
        "from distillkit import hookimpl\n@hookimpl\ndef distillkit_methods():\n    raise RuntimeError('no licence')",
        ["RuntimeError: no licence"],
    ),
    "offer": (
        "from distillkit import hookimpl\n@hookimpl\ndef distillkit_methods():\n    return ['kd']",
        ["'kd', which is not a named Method class"],
    ),
    "unknown hook": (
        "from distillkit import hookimpl\n@hookimpl\ndef distillkit_metods():\n    return []",
        ["distillkit_metods"],
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_and_everything_else_works(install, cli, small_run, kind):
    code, fragments = BROKEN[kind]
    env = install("bad_plugin", code, entry="bad")
    listed = cli("methods", env={**env, "COLUMNS": "300"})
    assert listed.returncode == 0 and "dmd" in listed.stdout
    for fragment in ["broken: bad (bad_plugin 1.2)", *fragments]:
        assert fragment in " ".join(listed.stdout.split())
    asked = cli("run", "bad", env=env)
    assert asked.returncode == 2 and "bad_plugin is broken" in asked.stderr
    if kind == "import":
        assert cli("--help", env=env).returncode == 0
        assert cli(*small_run, "--output-dir", "run", env=env).returncode == 0


def test_a_name_that_two_plugins_offer_is_refused_for_both(install, cli):
    install("my_kd", KD)
    env = install("other_kd", KD)
    reason = "the method 'endpoints' is offered by my_kd 1.2 (plugin my_kd) and other_kd 1.2 (plugin other_kd)"
    assert f"refused: {reason}" in " ".join(cli("methods", env={**env, "COLUMNS": "300"}).stdout.split())
    asked = cli("run", "endpoints", env=env)
    assert asked.returncode == 2 and reason in asked.stderr and "uninstall all but one" in asked.stderr


MISBEHAVED = {
    "returns nothing": ("None", "", ["trajectory_endpoint", "returned NoneType", "scalar"]),
    "returns a batch": ("step.samples", "", ["returned a tensor of shape (16, 1, 8, 8)"]),
    "detached": (
        "step.samples.detach().mean()",
        "",
        ["no gradient flows from the objectives (trajectory_endpoint) to the student"],
    ),
    "raises": ("1 / 0", "", ["trajectory_endpoint (my_kd.TrajectoryEndpoint) failed at step 1: ZeroDivisionError"]),
    "undeclared": ("step.images.sample.mean()", "", ['needs = ("images",)']),
    "wrong shape": ("(step.samples - step.samples[:, :, :3]).mean()", "", ["failed at step 1", "size"]),
    "not a number": ("step.samples.mean() * float('nan')", "", ["loss/trajectory_endpoint is not finite"]),
    "too much memory": ("step.samples.mean() + torch.empty(10**15).sum()", "import torch", ["--batch-per-device"]),
}


@pytest.mark.parametrize("kind", MISBEHAVED)
def test_a_plugin_that_misbehaves_is_one_clear_error(install, cli, tiny_teacher_folder, kind):
    expression, extra, fragments = MISBEHAVED[kind]
    code = KD.replace("pseudo_huber(step.student(pairs.noise, pairs.condition), pairs.sample).mean()", expression)
    code = code.replace('needs = ("pairs",)', 'needs = ("samples",)').replace("        pairs = step.pairs\n", "")
    env = install("my_kd", f"{extra}\n{code}")
    done = cli(*short(tiny_teacher_folder), env=env)
    assert done.returncode == 1, done.stderr
    for fragment in fragments:
        assert fragment in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_that_fails_names_the_plugin(install, cli, tiny_teacher_folder):
    env = install("my_kd", KD.replace("student = StudentGenerator.from_teacher(teacher)", "student = teacher.unet"))
    done = cli(*short(tiny_teacher_folder), env=env)
    assert done.returncode == 1
    assert "method endpoints (my_kd 1.2) cannot make its recipe: AttributeError" in done.stderr


def test_collapse_is_seen_and_said(install, cli, tiny_teacher_folder):
    code = KD.replace(
        "    needs = (", "    diagnostics = (Diagnostic('spread', (0.5, 2), (0.1, 9), 'spread'),)\n    needs = ("
    )
    code = code.replace("import Method,", "import Diagnostic, Method,").replace(
        "        pairs = step.pairs\n",
        "        pairs = step.pairs\n        step.log('spread', pairs.noise.std() * 0)\n",
    )
    env = install("my_kd", code)
    done = cli(*short(tiny_teacher_folder), env=env)
    assert done.returncode == 0, done.stderr
    assert "spread collapsed" in done.stdout
    assert done.stdout.count("spread is 0, collapsed (healthy: 0.5 to 2): spread") == 1


IMAGES = KD.replace('needs = ("pairs",)', 'needs = ("images", "samples")').replace(
    "        pairs = step.pairs\n"
    "        return pseudo_huber(step.student(pairs.noise, pairs.condition), pairs.sample).mean()",
    "        return (step.samples.mean(0) - step.images.sample.mean(0)).square().mean()",
)


def test_a_method_that_needs_real_images_gets_the_embedded_or_the_named_ones(install, cli, tmp_path,
                                                                              tiny_teacher_folder):  # fmt: skip
    assert "step.images" in IMAGES
    env = install("my_images", IMAGES)
    done = cli(*short(tiny_teacher_folder), env=env)
    assert done.returncode == 0, done.stderr
    for k in range(6):
        (tmp_path / "pictures" / str(k % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9), 40 * k, np.uint8)).save(tmp_path / "pictures" / str(k % 2) / f"{k}.png")
    arguments = [*short(tiny_teacher_folder)[:-1], "other", "--data", "pictures"]
    wrong = cli(*arguments, env=env)
    assert wrong.returncode == 2 and "--data-resolution 8" in wrong.stderr
    assert not (tmp_path / "other").exists()
    right = cli(*arguments[:-3], "named", "--data", "pictures", "--data-resolution", "8", env=env)
    assert right.returncode == 0, right.stderr


PROTOCOLS = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
EXTRACTOR = next(block for block in re.findall(r"```python\n(.*?)```", PROTOCOLS, re.DOTALL) if "hookimpl" in block)


def test_a_third_partys_extractor_makes_references_and_figures(install, cli, tmp_path, tiny_teacher_folder):
    env = install("my_features", EXTRACTOR)
    (tmp_path / "pictures").mkdir()
    for k in range(30):
        Image.fromarray(np.full((8, 8), 8 * k, np.uint8)).save(tmp_path / "pictures" / f"{k}.png")
    made = cli("reference", "make", "--data", "pictures", "--extractor", "brightness", "-o", "ref.safetensors", env=env)
    assert made.returncode == 0, made.stderr
    done = cli(
        "evaluate", tiny_teacher_folder, "--extractor", "brightness", "--reference", "ref.safetensors",
        "--samples", "50", "--nfe", "1", "-o", "r.json", env=env,
    )  # fmt: skip
    assert done.returncode == 0 and "FD[brightness/moments]-50" in done.stdout, done.stderr
    broken = install("bad_features", EXTRACTOR.replace("super().__init__()", "1 / 0").replace('"brightness"', '"dim"'))
    failed = cli("evaluate", tiny_teacher_folder, "--extractor", "dim", "--reference", "ref.safetensors", env=broken)
    assert failed.returncode == 1 and "extractor dim (bad_features 1.2) fails: ZeroDivisionError" in failed.stderr
    assert cli("methods", env=broken).returncode == 0
