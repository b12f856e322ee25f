"""Students of runs: finished, interrupted, and of any checkpoint."""

import hashlib
import json
import logging

import pytest
import torch
from safetensors.torch import save

from distillkit import DistillkitError, StudentGenerator, UsageError, load_student
from distillkit.files import canonical_json
from distillkit.students.artifact import save_student
from distillkit.students.load import initial_weights


@pytest.fixture
def run(tmp_path, teacher_of, described):
    """A run with checkpoints of three steps, whose weights are the step's number (and minus it without averaging)."""
    teacher = teacher_of()
    generator = StudentGenerator.from_teacher(teacher)

    def state(value):
        return {name: torch.full_like(tensor, float(value)) for name, tensor in generator.state_dict().items()}

    def checkpoint(name, step):
        folder = tmp_path / "x" / "checkpoints" / name
        folder.mkdir(parents=True)
        files = {"average": save(state(step / 100)), "student": save(state(-step / 100))}
        for stem, data in files.items():
            (folder / f"{stem}.safetensors").write_bytes(data)
        values = {"student": described(generator, teacher, images_seen=16 * step).model_dump(mode="json")}
        hashes = {f"{stem}.safetensors": hashlib.sha256(data).hexdigest() for stem, data in files.items()}
        body = {"step": step, "values": values, "sha256": hashes}
        body["self"] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
        (folder / "state.json").write_text(json.dumps(body))

    for step in (100, 200, 300):
        checkpoint(f"step-{step:09d}", step)
    checkpoint("best", 200)
    return tmp_path / "x"


def value(student):
    return student.generator.denoiser.model.read.weight.flatten()[0].item()


@pytest.mark.parametrize(
    ("selector", "expected"),
    [("@latest", 3.0), ("@average", 3.0), ("@student", -3.0), ("@best", 2.0), ("@100", 1.0), ("", 3.0),
     ("/checkpoints/step-000000100", 1.0), ("/checkpoints/best", 2.0), ("/checkpoints/step-000000100@student", -1.0)],
)  # fmt: skip
def test_every_checkpoint_is_a_student(run, selector, expected):
    student = load_student(f"{run}{selector}")
    assert value(student) == expected
    assert student.description.images_seen == abs(int(expected * 1600)) and student(2).shape == (2, 1, 4, 4)
    assert student.description.weights_sha256
    state, origin, _ = initial_weights(f"{run}{selector}", student.generator.denoiser)
    assert state["model.read.weight"].flatten()[0] == expected and "step" in origin


def test_an_unfinished_run_says_what_is_taken(run, caplog):
    heard = []
    load_student(run, say=heard.append)
    assert len(heard) == 1 and "step 300" in heard[0] and str(run) in heard[0]
    with caplog.at_level(logging.WARNING, "distillkit"):
        load_student(run)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    load_student(f"{run}@latest", say=heard.append)
    assert len(heard) == 1


def test_a_finished_run_is_its_student_and_keeps_its_checkpoints(run, teacher_of, described):
    teacher = teacher_of()
    generator = StudentGenerator.from_teacher(teacher)
    description = described(generator, teacher)
    seen = json.loads((run / "checkpoints" / "step-000000300" / "state.json").read_text())["values"]["student"]
    finished = description.model_copy(update={"images_seen": seen["images_seen"]})
    save_student(run / "student", generator, finished)
    heard = []
    student = load_student(run, say=heard.append)
    assert not heard and value(student) == generator.denoiser.model.read.weight.flatten()[0]
    assert value(load_student(f"{run}@200")) == 2.0
    with pytest.raises(UsageError, match="@best"):
        load_student(f"{run}/student@best")


def test_what_is_not_there_is_named_with_what_is(run, tmp_path):
    for selector, named in (("@150", "100, 200, 300"), ("@bset", "@best"), ("/checkpoints/best@latest", "@average")):
        with pytest.raises(UsageError) as refused:
            load_student(f"{run}{selector}")
        assert named in str(refused.value)
    for path in ("nowhere", "nowhere@best"):
        with pytest.raises(UsageError, match="nowhere"):
            load_student(tmp_path / path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no student"):
        load_student(tmp_path / "empty")
    with pytest.raises(UsageError, match="no checkpoints"):
        load_student(f"{tmp_path / 'empty'}@best")
    (tmp_path / "empty" / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="no checkpoint yet"):
        load_student(tmp_path / "empty")
    with pytest.raises(UsageError, match="--evaluate-every"):
        load_student(f"{tmp_path / 'empty'}@best")


def test_a_folder_may_have_the_sign_in_its_name(run):
    assert value(load_student(run.rename(run.with_name("x@best")))) == 3.0


@pytest.mark.parametrize("damage", ["weights", "state", "student"])
def test_damaged_checkpoints_are_passed_over_or_refused(run, damage):
    folder = run / "checkpoints" / "step-000000300"
    file = folder / ("average.safetensors" if damage == "weights" else "state.json")
    if damage == "weights":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "state":
        file.write_text(file.read_text().replace('"step": 300', '"step": 301'))
    else:
        body = json.loads(file.read_text())
        del body["self"], body["values"]["student"]
        file.write_text(json.dumps(body))
    heard = []
    assert value(load_student(run, say=heard.append)) == 2.0
    assert str(folder) in heard[0]
    with pytest.raises(DistillkitError) as refused:
        load_student(f"{run}@300")
    assert refused.value.exit_code == 1 and str(folder) in str(refused.value)
