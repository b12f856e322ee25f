"""The page on own images runs as it is printed, with shorter trainings; a reference is a protocol by itself."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distillkit import DistillkitError, UsageError
from distillkit.embedded import assets
from distillkit.embedded.rgb32 import extractor as rgb32
from distillkit.embedded.rgb32.classifier import Rgb32CNN
from distillkit.evaluation.presets import load_measure
from distillkit.evaluation.record import read_record
from distillkit.evaluation.reference import load_reference
from distillkit.files import sha256

PAGE = (Path(__file__).parents[1] / "docs" / "own-images.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(console|python|yaml)\n(.*?)```", PAGE, re.DOTALL)

SHORTER = {
    "range(240)": "range(24)",
    "--data-resolution 32": "--data-resolution 8",
    "--model-channels 32 --channel-mult 1,2": "--model-channels 8 --channel-mult 1",
    "--duration 200k --batch 64": "--duration 16 --batch 8",
    "--duration 64k": "--duration 16 --batch 8 --pairs-count 8",
    "1k": "0.016k",
    "budget: 500k": "budget: 1k\ncurve_points: 1\ntraining: {batch: 8}\nsources: {pairs: {count: 8}}",
    "32, 32)": "8, 8)",
}


@pytest.fixture
def weights(tmp_path_factory, monkeypatch):
    """Random weights where the tree has none."""
    if rgb32.WEIGHTS in assets.asset_hashes():
        return
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / rgb32.WEIGHTS
    save_file({**Rgb32CNN().state_dict(), "scale": torch.tensor(1.0)}, path)
    monkeypatch.setattr(rgb32, "asset_path", lambda name: path)
    monkeypatch.setattr(rgb32, "asset_hashes", lambda: {rgb32.WEIGHTS: "0" * 64})
    rgb32.rgb32_features.cache_clear()


def test_the_page_on_own_images_runs(weights, inside, tmp_path, monkeypatch):
    """Every block in turn; commands of the shell are distillkit's, and `python draw.py`."""
    monkeypatch.chdir(tmp_path)
    assert all(long in PAGE for long in SHORTER)
    ran = []
    for kind, block in BLOCKS:
        text = block.replace("\\\n   ", "")
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        if kind == "python":
            exec(compile(text, "own-images.md", "exec"), {"__name__": "__main__"})
        elif kind == "yaml":
            (tmp_path / "own.yaml").write_text(text)
        else:
            for command in re.findall(r"^\$ distillkit (.*)$", text, re.MULTILINE):
                done = inside(*shlex.split(command), *([] if "show" in command else device_of(command)))
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                ran.append(command)
    assert len(ran) >= 13 and {command.split()[0] for command in ran} >= {
        "reference",
        "teachers",
        "run",
        "bench",
        "export",
    }
    records = [read_record(path) for path in (tmp_path / "runs" / "dmd" / "records").glob("*.json")]
    assert {record.label for record in records} == {"FD[rgb32cnn/pool128]-16", "FD[small/output]-16"}
    assert (tmp_path / "exported" / "model_index.json").is_file() and (tmp_path / "student.png").is_file()


TRAINED = ("run", "bench", "evaluate", "teachers", "sample")


def device_of(command: str) -> list[str]:
    return ["--device", "cpu"] if command.partition(" ")[0] in TRAINED else []


@pytest.fixture
def references(weights, inside, tmp_path):
    """Two files of statistics of the same pictures: by the shipped extractor, and by one of the user's."""
    for kind, block in BLOCKS:
        if kind == "python":
            (tmp_path / "made.py").write_text(block.replace("range(240)", "range(8)"))
            inside("--version")  # stands in the test's folder
            exec(compile(block.replace("range(240)", "range(8)"), "own-images.md", "exec"), {"__name__": "__main__"})
    for name, extractor in (("shipped", "rgb32cnn"), ("own", "small.pt")):
        made = ["--data", "photos", "--extractor", extractor, "--data-resolution", "16", "-o", f"{name}.safetensors"]
        assert inside("reference", "make", *made, "--quiet").returncode == 0
    return tmp_path


def test_a_reference_says_how_it_was_made_and_is_a_protocol(references):
    for name, label in (("shipped", "rgb32cnn/pool128"), ("own", "small/output")):
        path = references / f"{name}.safetensors"
        measure = load_measure(str(path), count=50, shape=(3, 16, 16))
        assert measure.protocol.label == f"FD[{label}]-50"
        assert measure.protocol.samples.prepare == "centre square, lanczos to 16"
        again = load_measure(None, reference=path, count=50, shape=(3, 16, 16))
        assert again.protocol.id == measure.protocol.id, "--reference FILE is the same"


def test_another_extractor_than_the_references_is_refused(references):
    path = references / "own.safetensors"
    with pytest.raises(DistillkitError, match=r"small\.pt.*id rgb32cnn/pool128, not small/output"):
        load_measure(None, reference=path, extractor="rgb32cnn")
    with pytest.raises(UsageError, match="leave --reference and --extractor out"):
        load_measure(str(path), extractor="rgb32cnn")
    weights = torch.jit.load(str(references / "small.pt"))
    with torch.no_grad():
        next(weights.parameters()).add_(1)
    weights.save(str(references / "small.pt"))
    with pytest.raises(DistillkitError, match="weights_sha256"):
        load_measure(None, reference=path, extractor=str(references / "small.pt"), shape=(3, 16, 16))


def test_a_program_that_a_reference_names_is_said_and_checked_before_it_is_loaded(references, monkeypatch, caplog):
    path, program = references / "own.safetensors", references / "small.pt"
    load_measure(str(path), shape=(3, 16, 16))
    assert str(program) in caplog.text
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("it was loaded"))
    program.write_bytes(program.read_bytes() + b"another")
    with pytest.raises(DistillkitError, match=r"small\.pt.*\n.*sha256"):
        load_measure(str(path), shape=(3, 16, 16))
    monkeypatch.chdir(references)
    with safe_open(path, "pt") as file:
        making = json.loads(file.metadata()["making"])
    making |= {"extractor": "small.pt", "spec": making["spec"] | {"weights_sha256": sha256(program)}}
    save_file(load_file(path), path, metadata={"id": "x", "count": "8", "making": json.dumps(making)})
    with pytest.raises(DistillkitError, match=r"small\.pt"):
        load_measure(str(path), shape=(3, 16, 16))


@pytest.mark.parametrize("making", ['{"extractor": "rgb32cnn"}', "[]", "{", '{"extractor": 3, "spec": {}}'])
def test_a_file_that_is_wrong_about_its_making_is_one_message(references, making):
    path = references / "shipped.safetensors"
    save_file(load_file(path), path, metadata={"id": "x", "count": "8", "making": making})
    with pytest.raises(DistillkitError, match=r"shipped\.safetensors.*made"):
        load_reference(path)


def test_a_file_is_named_where_a_protocols_name_is_needed(references, inside):
    for command in (["protocols", "fetch"], ["protocols", "pin", "--sha256", "0" * 64]):
        done = inside(*command, "own.safetensors")
        assert done.returncode == 2 and "own.safetensors" in done.stderr
    missing = inside("run", "kd", "--protocol", "absent.safetensors", "-o", "run")
    assert missing.returncode == 2 and "absent.safetensors" in missing.stderr and not (references / "run").exists()
