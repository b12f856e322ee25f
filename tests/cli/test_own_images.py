"""Images that people bring, through every command that reads some: the line that says what they are, and refusals."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import distillkit
from distillkit import UsageError
from distillkit.embedded.digits.data import load_digits
from distillkit.evaluation.record import read_record
from tests.data.test_images import encoded, picture, unfolded
from tests.data.test_own_folders import damaged_folder

TINY = ["--model-channels", "8", "--channel-mult", "1", "--num-blocks", "1", "--attn-resolutions", "none",
        "--duration", "192", "--batch", "16", "--log-every", "16", "--checkpoint-every", "1000", "--protocol", "none",
        "--warmup", "0", "--sample-every", "1000", "--channels-last", "off"]  # fmt: skip


def digits(tmp_path, count=60):
    """A folder with a folder for each digit, among what systems leave behind."""
    pixels, labels = load_digits()
    for k in range(count):
        place = tmp_path / "digits-of-mine" / str(int(labels[k]))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[k, 0].numpy()).save(place / f"{k}.png")
    (tmp_path / "digits-of-mine" / ".DS_Store").write_bytes(b"")
    return "digits-of-mine"


def test_teachers_train_begins_with_what_the_images_are(inside, tmp_path):
    path = digits(tmp_path)
    done = inside("teachers", "train", "mine", "--data", path, *TINY, "--output-dir", "t")
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith("data: 60 images in 10 classes (0 ") and ".DS_Store" in first and "8 x 8 grey" in first


REFUSED = {
    "absent": ({}, ["--data", "absent"], "absent"),
    "empty": ({}, ["--data", "x"], "no images in x"),
    "of several sizes": (
        {"a.png": encoded(picture(1)), "b.png": encoded(picture(2, size=(9, 8)))}, ["--data", "x"],
        "--data-resolution 8",
    ),
    "transparent": (
        {"a.png": encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 4)))}, ["--data", "x"], "--data-background"
    ),
    "parts": ({"train/a/1.png": b"", "val/a/1.png": b""}, ["--data", "x"], "--data x/train"),
    "no colour": ({"a.png": encoded(picture(1))}, ["--data", "x", "--data-background", "clear"], "--data-background"),
}  # fmt: skip


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_every_command_refuses_what_has_to_be_chosen_with_the_option(name, dry, inside, tmp_path, tiny_teacher_folder):
    contents, arguments, fragment = REFUSED[name]
    (tmp_path / "x").mkdir()
    unfolded(tmp_path / "x", contents)
    flags = ["--dry-run"] if dry else ["--output-dir", "out"]
    commands = [
        ["teachers", "train", "mine", *arguments, *flags],
        ["run", "dmd2", "--teacher", tiny_teacher_folder, *arguments, *flags],
    ]
    if not dry:
        commands.append(["reference", "make", *arguments, "--extractor", "digits8cnn", "-o", "r.safetensors"])
    for command in commands:
        done = inside(*command)
        assert done.returncode == 2 and fragment in done.stderr, (command, done.stderr)
        assert "Traceback" not in done.stderr and "fault of distillkit" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_says_its_data_and_python_gets_the_same(inside, tmp_path, tiny_teacher_folder, monkeypatch, capsys):
    path = digits(tmp_path)
    planned = inside("run", "dmd2", "--teacher", tiny_teacher_folder, "--data", path, "--dry-run")
    assert planned.returncode == 0 and "60 images in 10 classes" in planned.stdout, planned.stderr
    monkeypatch.chdir(tmp_path)
    small = {"duration": 32, "batch": 16, "evaluation_samples": 20, "evaluate_samples": 20, "protocol": "none"}
    run = distillkit.distil("dmd2", tiny_teacher_folder, data=path, output_dir="r", device="cpu", **small)
    assert run.finished and "60 images in 10 classes (0 " in capsys.readouterr().out
    with pytest.raises(UsageError, match="absent"):
        distillkit.distil("dmd2", tiny_teacher_folder, data="absent", output_dir="s", device="cpu", **small)


def test_a_run_that_a_damaged_image_ends_goes_on_without_it_to_the_same_weights(inside, tmp_path):
    path = damaged_folder(tmp_path, count=60, damaged=(17,))
    options = ["--data", path, "--data-resolution", "8", *TINY]
    ended = inside("teachers", "train", "mine", *options, "--output-dir", "parts")
    assert ended.returncode == 1 and f"{path}/b/17.png" in ended.stderr and "Saved at step" in ended.stderr
    command = ended.stderr.strip().rpartition("Continue with: distillkit ")[2].split()
    resumed = inside(*command)
    assert resumed.returncode == 0 and "another is read in its place" in resumed.stdout, resumed.stderr
    whole = inside("teachers", "train", "mine", *options, "--skip-damaged", "1", "--output-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    a, b = (load_file(tmp_path / name / "teacher" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a | b)


def test_evaluate_takes_the_npz_file_that_it_saved(inside, tmp_path, tiny_teacher_folder):
    made = inside("evaluate", tiny_teacher_folder, "--samples", "80", "--save-images", "own.npz", "-o", "a.json")
    assert made.returncode == 0, made.stderr
    done = inside("evaluate", "own.npz", "--protocol", "digits8", "-o", "b.json")
    assert done.returncode == 0 and "data: 80 images, 8 x 8 grey, from own.npz" in done.stdout, done.stderr
    one, two = (read_record(tmp_path / name) for name in ("a.json", "b.json"))
    assert one.figures[one.label].value == pytest.approx(two.figures[two.label].value)
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(3), sigma=np.eye(3))
    wrong = inside("evaluate", "wrong.npz", "--protocol", "digits8")
    assert wrong.returncode == 2 and "--reference" in wrong.stderr
    misplaced = inside("evaluate", tiny_teacher_folder, "--skip-damaged", "3")
    assert misplaced.returncode == 2 and "--skip-damaged" in misplaced.stderr


def test_references_of_own_images(inside, tmp_path):
    path = digits(tmp_path, 300)
    (tmp_path / path / "3" / "cut.png").write_bytes(encoded(picture(1, size=(64, 64)))[:2000])
    command = ["reference", "make", "--data", path, "--extractor", "digits8cnn", "-o", "r.safetensors",
               "--data-resolution", "8", "--data-grey"]  # fmt: skip
    refused = inside(*command)
    assert refused.returncode == 1 and "3/cut.png" in refused.stderr and "--skip-damaged" in refused.stderr
    done = inside(*command, "--skip-damaged", "1")
    assert done.returncode == 0 and "data: 301 images in 10 classes" in done.stdout, done.stderr
    assert "cut.png" in done.stdout and "another is read" in done.stdout
