"""A student that knows how to be sampled."""

import json

import pytest
import torch

from distillkit import DistillkitError, StudentGenerator, UsageError, load_student
from distillkit.students.artifact import StudentDescription, save_student


@pytest.fixture
def saved(tiny_teacher, tmp_path):
    generator = StudentGenerator.from_teacher(tiny_teacher)
    description = StudentDescription(
        distillkit="0", method="kd", method_package="kd 1", settings={}, teacher=tiny_teacher.spec,
        sampler=generator.sampler.model_dump(), nfe=1.0, images_seen=0,
    )  # fmt: skip
    folder = tmp_path / "run" / "student"
    save_student(folder, generator, description)
    return folder, generator


def test_round_trip_from_its_own_or_the_runs_folder(saved):
    folder, generator = saved
    for path in (folder, folder.parent, str(folder)):
        student = load_student(path)
        for name, value in generator.denoiser.state_dict().items():
            assert torch.equal(student.generator.denoiser.state_dict()[name], value)


def test_sample_i_depends_on_seed_and_i_alone(saved):
    student = load_student(saved[0])
    pixels = student(20, seed=3)
    assert pixels.dtype == torch.uint8 and pixels.shape == (20, 1, 8, 8)
    assert (student(7, seed=3) == pixels[:7]).float().mean() > 0.99
    assert (student(20, seed=3, batch=6) == pixels).float().mean() > 0.99
    assert not torch.equal(student(20, seed=4), pixels)
    assert student(0).shape == (0, 1, 8, 8)


def test_labels_are_checked(saved):
    student = load_student(saved[0])
    assert student(3, labels=torch.tensor([9, 9, 0])).shape[0] == 3
    for labels in ([10, 0, 0], [0, 1], [-1, 0, 0]):
        with pytest.raises(UsageError, match="labels must be 3 numbers from 0 to 9"):
            student(3, labels=torch.tensor(labels))


@pytest.mark.parametrize("damage", ["flip", "json", "field", "kind", "weights"])
def test_damaged_students_are_refused_with_one_message(saved, damage):
    folder, _ = saved
    path, weights = folder / "student.json", folder / "model.safetensors"
    body = json.loads(path.read_text())
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "json":
        path.write_text(path.read_text()[:40])
    elif damage == "weights":
        weights.unlink()
    else:
        path.write_text(json.dumps({**body, "mystery": 1} if damage == "field" else {**body, "sampler": {"kind": "x"}}))
    with pytest.raises(DistillkitError, match=str(folder)):
        load_student(folder)


def test_no_student_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no student in"):
        load_student(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="not finished"):
        load_student(tmp_path)
