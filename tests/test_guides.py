"""The guides' code runs: what a newcomer copies is what is tested."""

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from distillkit import load_student, load_teacher
from distillkit.registry import registry
from tests.models import pipelines

GUIDES = Path(__file__).parents[1] / "docs"


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (GUIDES / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_method_of_the_guide_works_and_conforms():
    """Runs every block in turn; two of them are conformance checks of the methods before them."""
    found = blocks("write-a-method")
    assert sum("check_method(" in block for block in found) == 2
    names = {}
    for block in found:
        exec(compile(block, "write-a-method.md", "exec"), names)
    assert names["distillkit_methods"]() == [names["Endpoint"]]
    assert callable(names["test_conformance"])


def test_the_first_blocks_of_the_guide_are_a_file_that_runs(inside, tmp_path, tiny_teacher_folder):
    (tmp_path / "my_method.py").write_text("\n".join(blocks("write-a-method")[:2]))
    short = ["--duration", "64", "--pairs-count", "16", "--protocol", "none", "--output-dir", "run", "--quiet"]
    done = inside("run", "./my_method.py", "--teacher", tiny_teacher_folder, "--distance", "l1", *short)
    assert done.returncode == 0, done.stderr
    assert load_student(tmp_path / "run").description.settings == {"distance": "l1", "weight": 1.0}


def test_the_home_pages_method_runs(inside, tmp_path, tiny_teacher_folder):
    [code] = blocks("index")
    (tmp_path / "my_method.py").write_text(code)
    short = ["--duration", "32", "--batch", "16", "--pairs-count", "16", "--protocol", "none", "--quiet"]
    done = inside("run", "./my_method.py", "--teacher", tiny_teacher_folder, *short, "--output-dir", "run")
    assert done.returncode == 0, done.stderr
    assert load_student(tmp_path / "run").nfe == 1


SHORTER = {'"64k"': "128, evaluation_samples=100", '"1k"': "16", "10_000": "60", "digits": "{teacher}"}


def test_pythons_page_runs(tmp_path, monkeypatch, tiny_teacher_folder):
    """Every block in turn, with the tiny teacher and shorter trainings."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("python"))
    for long, short in SHORTER.items():
        assert long in code
        code = code.replace(long, short.format(teacher=tiny_teacher_folder))
    names = {}
    exec(compile(code, "python.md", "exec"), names)
    assert names["pixels"].shape == (16, 1, 8, 8) and names["images"].shape == (8, 1, 8, 8)
    assert names["record"].label == "FD[digits8cnn/fc64]-60" and names["record"].figure.standard_error > 0
    assert names["mine"].finished and names["mine"].config.method == "regression"
    assert (tmp_path / "exported" / "student.json").is_file()


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """The guide's plugin as an installed package, in this process."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "guide_plugin.py").write_text("\n".join(blocks("plugins")))
    info = site / "guide_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guide-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[distillkit]\nguide = guide_plugin\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "guide_plugin", raising=False)
    registry.cache_clear()
    yield
    monkeypatch.undo()
    registry.cache_clear()


def test_every_kind_of_plugin_in_the_guide_works(offered, inside, tmp_path):
    listed = " ".join(inside("plugins").stdout.replace("│", " ").split())
    for said in (
        "guide-plugin 1.0",
        "teachers: sketcher, sharp-digits",
        "networks: TextFlow",
        "samplers: TwoJump",
        "conditioners: Sentences",
        "families: SketchTransformer2DModel",
        "codecs: Latents",
        "sources: trajectories",
        "protocols: digits-2k",
        "trackers: lines",
        "exporters: torch",
    ):
        assert said in listed
    assert "sharp-digits" in inside("teachers").stdout and "digits-2k" in inside("protocols").stdout
    arguments = ["--teacher", "sharp-digits", "--duration", "128", "--pairs-count", "16", "--evaluation-samples", "100"]
    run = inside("run", "kd", *arguments, "--report-to", "lines", "--output-dir", "run", "--quiet")
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert lines[-1]["images"] == 128 and any("loss/regression" in line for line in lines)
    measured = inside("evaluate", "run", "--protocol", "digits-2k", "--samples", "60", "--quiet", "-o", "r.json")
    assert measured.returncode == 0 and "(digits-2k)" in measured.stdout, measured.stderr
    written = inside("export", "run", "--to", "torch", "-o", "out")
    assert written.returncode == 0 and (tmp_path / "out" / "weights.pt").is_file(), written.stderr
    assert (tmp_path / "out" / "README.md").is_file(), "the card comes along"


def test_the_guides_family_is_a_teacher(offered, tmp_path):
    folder, weights = tmp_path / "tiny", load_teacher("sketcher").denoiser.state_dict()
    (folder / "transformer").mkdir(parents=True)
    network = {"_class_name": "SketchTransformer2DModel", "sample_size": 4, "width": 16}
    (folder / "transformer" / "config.json").write_text(json.dumps(network))
    state = {name.removeprefix("model."): value for name, value in weights.items()}
    save_file(state, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(folder / "scheduler")
    pipelines.vae().save_pretrained(folder / "vae")
    teacher = load_teacher(str(folder))
    assert teacher.schedule.shift == 2.0 and teacher.spec.shape == (4, 4, 4)
    condition = teacher.conditioner.encode(torch.tensor([0, 1]))
    assert teacher.codec.decode(teacher.sample(torch.randn(2, 4, 4, 4), condition)).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("method", "options", "evaluations"),
    [("kd", ["--pairs-count", "16"], 1), ("two-jumps", ["--trajectories-steps", "4"], 2)],
)
def test_the_guides_teacher_is_distilled_and_its_student_loaded(
    offered, inside, tmp_path, method, options, evaluations
):
    short = ["--teacher", "sketcher", "--duration", "64", "--batch", "16", "--output-dir", "run", "--quiet"]
    done = inside("run", method, *short, *options)
    assert done.returncode == 0, done.stderr
    assert sys.modules["guide_plugin"].use(tmp_path / "run").shape == (4, 3, 16, 16)
    student = load_student(tmp_path / "run")
    assert student.nfe == evaluations and student.description.network["kind"] == "guide-plugin:TextFlow"
    assert not student(2, classes=["a dot"]).equal(student(2, classes=["a red square"])), "prompts matter"
    sampled = inside("sample", "run", "--labels", "a red square", "--num", "4")
    assert sampled.returncode == 0 and (tmp_path / "grid.png").is_file(), sampled.stderr


FAULTS = {
    "teacher": ("return Teacher(denoiser, spec, d", "raise OSError('no disk')\n    return Teacher(denoiser, spec, d",
                ["run", "kd", "--teacher", "sharp-digits"], "teacher sharp-digits (guide-plugin 1.0) cannot be loaded"),
    "protocol": ('"count": 2000', '"count": -1', ["protocols"], "the protocol digits-2k of guide-plugin 1.0: count"),
    "exporter": ("torch.save(", "undefined(", ["export", "run", "--to", "torch", "-o", "out"],
                 "export to torch (guide-plugin 1.0) failed: NameError"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_what_fails_in_a_plugin_is_named_with_its_package(offered, inside, tmp_path, kind, tiny_teacher_folder):
    before, after, command, said = FAULTS[kind]
    path = tmp_path / "site" / "guide_plugin.py"
    code = path.read_text()
    assert before in code
    path.write_text(code.replace(before, textwrap.dedent(after)))
    if kind == "exporter":
        run = [
            "--teacher",
            tiny_teacher_folder,
            "--duration",
            "64",
            "--pairs-count",
            "16",
            "--evaluation-samples",
            "100",
        ]
        assert inside("run", "kd", *run, "--output-dir", "run", "--quiet").returncode == 0
    done = inside(*command)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_failing_tracker_is_a_warning(offered, inside, tmp_path, tiny_teacher_folder, caplog):
    path = tmp_path / "site" / "guide_plugin.py"
    path.write_text(path.read_text().replace("self.file.write(", "self.fiel.write("))
    arguments = [
        "--teacher",
        tiny_teacher_folder,
        "--duration",
        "64",
        "--pairs-count",
        "16",
        "--evaluation-samples",
        "100",
    ]
    run = inside("run", "kd", *arguments, "--report-to", "lines", "--output-dir", "run", "--quiet")
    assert run.returncode == 0 and "the tracker failed" in caplog.text
    unknown = inside("run", "kd", "--report-to", "nowhere")
    assert unknown.returncode == 2 and "lines" in unknown.stderr


def test_another_version_of_the_interface_is_named(offered, inside, tmp_path):
    path = tmp_path / "site" / "guide_plugin.py"
    code = path.read_text()
    assert "DISTILLKIT_API = 2" in code
    path.write_text(code.replace("DISTILLKIT_API = 2", "DISTILLKIT_API = 99"))
    listed = inside("plugins")
    said = " ".join(listed.stdout.replace("│", " ").split())
    assert listed.returncode == 1 and "version 99" in said and "upgrade distillkit" in said
