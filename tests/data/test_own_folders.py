"""Folders of images as people have them: what is taken, what is left out, and what is asked."""

import json
import os
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit import ClassLabels, DistillkitError, SourceJob, UsageError
from distillkit.data.config import DataConfig
from distillkit.data.files import open_images
from distillkit.data.images import ImageSource
from distillkit.data.reader import ImageReader
from distillkit.data.stream import open_stream
from tests.data.teachers import linear_teacher
from tests.data.test_images import CPU, RNG, encoded, picture, unfolded, zipped

PNG = encoded(picture(1))


def said(path, **settings):
    return ImageReader(DataConfig(path=str(path), **settings)).summary


@pytest.fixture(params=["folder", "zip"])
def placed(request, tmp_path):
    """Files by name in a folder or a zip file."""

    def place(contents):
        if request.param == "zip":
            return zipped(tmp_path / "x.zip", contents)
        return unfolded(tmp_path / "x", contents)

    return place


def test_one_line_says_how_many_of_what_and_what_was_left_out(placed):
    path = placed(
        {"cat/1.png": PNG, "cat/2.png": PNG, "dog/1.png": PNG, ".ipynb_checkpoints/1.png": PNG, "dog/._1.png": PNG,
         "__MACOSX/dog/1.png": PNG, "notes.txt": b"", "cat/plan.ai": b"", "cat/.DS_Store": b""}
    )  # fmt: skip
    line = said(path)
    assert open_images(path).class_names == ("cat", "dog")
    for text in ("3 images", "2 classes (cat 2, dog 1)", "8 x 8 RGB", path, "4 hidden", "2 other files", ".txt", ".ai"):
        assert text in line
    assert "\n" not in line


def test_a_folder_without_images_is_said(tmp_path):
    path = unfolded(tmp_path / "x", {"ant/1.png": PNG, "bee/deep/1.png": PNG, "eel/1.heicx": b""})
    line = said(path)
    assert "2 classes" in line and "1 folder without images (such as eel/)" in line


def test_many_classes_are_shortened(placed):
    line = said(placed({f"{k}/{j}.png": PNG for k in range(40) for j in range(1 + k % 3)}))
    assert "40 classes" in line and "1 to 3 each" in line and len(line) < 400


def test_numbered_folders_are_in_the_order_of_their_numbers(placed):
    images = open_images(placed({f"{k}/a.png": PNG for k in range(12)}))
    assert images.class_names == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    "names", [("train", "val"), ("train", "test"), ("Training", "Validation", "extra"), ("train2017", "val2017")]
)
def test_parts_of_a_data_set_are_no_classes(names, placed):
    with pytest.raises(UsageError, match="no classes") as raised:
        open_images(placed({f"{name}/cat/1.png": PNG for name in names}))
    assert names[0] in str(raised.value)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["bus/1.png", "train/1.png", "car/1.png"], ("bus", "car", "train")),
        (["photos/ant/1.png", "photos/bee/1.png"], ("ant", "bee")),
        (["train/ant/1.png", "train/bee/1.png"], ("ant", "bee")),
        (["a/b/1.png", "a/2.png"], ()),
        (["photos/1.png", "photos/2.png"], ()),
        (["1.png"], ()),
        (["00000/img00000000.png", "00001/img00001000.png"], ()),
    ],
)
def test_what_folders_are_classes(names, classes, placed):
    images = open_images(placed(dict.fromkeys(names, PNG)))
    assert images.class_names == classes and (images.labels is None) == (not classes)
    assert classes or any("no classes" in note for note in images.notes)


def test_links_are_followed_and_circles_end(tmp_path):
    unfolded(tmp_path / "elsewhere", {"1.png": PNG, "2.png": PNG})
    root = tmp_path / "x"
    unfolded(root, {"ant/1.png": PNG})
    (root / "bee").symlink_to(tmp_path / "elsewhere")
    (root / "ant" / "linked.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (root / "ant" / "up").symlink_to(root)
    (root / "ant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    images = open_images(str(root))
    assert images.class_names == ("ant", "bee") and images.labels.tolist() == [0, 0, 1, 1]
    line = said(root)
    assert "1 broken link" in line and "gone.png" in line and "ant/up" in line


def test_links_that_make_folders_endlessly_many_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.data.folders.MOST_FOLDERS", 200)
    for k in range(20):
        (tmp_path / str(k)).mkdir()
    for k in range(19):
        for name in "ab":
            (tmp_path / str(k) / name).symlink_to(tmp_path / str(k + 1))
    with pytest.raises(UsageError, match="links"):
        open_images(str(tmp_path / "0"))


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
@pytest.mark.parametrize("place", ["the data", "an image", "the labels", "behind a link"])
def test_what_is_no_file_is_named_and_never_waited_for(kind, place, tmp_path, monkeypatch):
    unfolded(tmp_path / "x", {"ant/1.png": PNG})
    path = tmp_path / "x" / {"the labels": "dataset.json"}.get(place, "ant/2.png")
    special = tmp_path / "special" if place == "behind a link" else path
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "FIFO":
        os.mkfifo(special)
    else:
        monkeypatch.chdir(special.parent)  # the path of a socket must be short
        socket.socket(socket.AF_UNIX).bind(special.name)
    if place == "behind a link" and kind != "device":
        path.symlink_to(special)
    with pytest.raises(UsageError, match=kind) as raised:
        open_images(str(path if place == "the data" else tmp_path / "x"))
    assert path.name in str(raised.value)


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path):
    images = open_images(unfolded(tmp_path / "x", {"1.png": PNG}))
    (tmp_path / "x" / "1.png").unlink()
    os.mkfifo(tmp_path / "x" / "1.png")
    with pytest.raises(DistillkitError, match=r"1\.png"):
        images.read(0)


@pytest.mark.parametrize("name", ["absent", "x.tar.gz", "one.png", "x.txt", ""])
def test_what_cannot_be_data_is_refused(name, tmp_path):
    if name and name != "absent":
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "empty").mkdir()
    path = tmp_path / (name or "empty")
    with pytest.raises(UsageError) as raised:
        open_images(str(path))
    assert str(path) in str(raised.value)


def listed(entries):
    return json.dumps({"labels": entries}).encode()


WRONG_LABELS = {
    "a name twice": (listed([["1.png", 0], ["2.png", 1], ["1.png", 1]]), "1.png"),
    "a key twice": (b'{"labels": [["1.png", 0]], "labels": [["1.png", 0], ["2.png", 1]]}', "twice"),
    "true for a number": (listed([["1.png", True], ["2.png", 1]]), "1.png"),
    "a number for a name": (listed([[1, 0], ["1.png", 0], ["2.png", 1]]), "name"),
    "far beyond": (listed([["1.png", 0], ["2.png", 999_999]]), "2.png"),
    "nested": (b'{"labels": ' + b"[" * 100_000, "dataset.json"),
    "nested and closed": (b'{"labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "dataset.json"),
    "not UTF-8": (b"\xff\xfe\x00", "dataset.json"),
    "very large": (b'{"labels": [' + b" " * 2**22 + b"]}", "dataset.json"),
    "a list": (b"[]", "dataset.json"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_wrong_labels_are_one_message(name, placed):
    text, fragment = WRONG_LABELS[name]
    with pytest.raises(DistillkitError, match=r"dataset\.json") as raised:
        open_images(placed({"1.png": PNG, "2.png": PNG, "dataset.json": text}))
    assert fragment in str(raised.value) and len(str(raised.value)) < 400


def test_labels_that_are_more_than_the_images_are_said(placed):
    text = listed([["1.png", 3], ["2.png", 1], ["2.png", 1], ["gone.png", 0]])
    path = placed({"photos/1.png": PNG, "photos/2.png": PNG, "photos/dataset.json": text})
    line = said(path)
    assert open_images(path).labels.tolist() == [3, 1], "labels lie where the images do, under a folder around all"
    assert "gone.png" in line and "twice" in line and "4 classes (0 0, 1 1, 2 0, 3 1, 2 without images)" in line


NAMED = linear_teacher(conditioner=ClassLabels(classes=3, class_names=("ant", "bee", "cat")))


@pytest.mark.parametrize(
    ("folders", "teacher", "keys"),
    [
        (["cat"] * 2 + ["bee"], NAMED, {1, 2}),
        (["7", "3"], linear_teacher(), {3, 7}),
        (["x", "y"], linear_teacher(), {0, 1}),
        (["apple", "bee", "cat"], NAMED, {0, 1, 2}),
    ],
)
def test_classes_are_the_models_of_the_same_names(folders, teacher, keys, tmp_path):
    path = unfolded(tmp_path / "x", {f"{name}/{k}.png": PNG for k, name in enumerate(folders)})
    stream = open_stream(DataConfig(path=path), teacher, CPU)
    assert set(stream.batch(RNG, 0, range(60)).condition["labels"].tolist()) == keys
    assert "order" in stream.summary or not {"x", "apple"} & set(folders)


@pytest.mark.parametrize("folders", [["bee", "cow"], ["1", "10"]])
def test_classes_of_which_the_model_knows_some_are_refused(folders, tmp_path):
    path = unfolded(tmp_path / "x", {f"{name}/1.png": PNG for name in folders})
    with pytest.raises(UsageError, match=folders[1]):
        open_stream(DataConfig(path=path), NAMED if "bee" in folders else linear_teacher(), CPU)


TRUNCATED = encoded(picture(5, size=(64, 64)))[:6000]


def damaged_folder(tmp_path, count=6, damaged=(1, 4)):
    contents = {
        f"{'ab'[k % 2]}/{k}.png": TRUNCATED if k in damaged else encoded(picture(k, size=(64, 64)))
        for k in range(count)
    }
    return unfolded(tmp_path / "x", contents)


def test_a_damaged_image_is_named_with_its_whole_path(tmp_path):
    path = damaged_folder(tmp_path, damaged=(3,))
    stream = open_stream(DataConfig(path=path), None, CPU)
    with pytest.raises(DistillkitError) as raised:
        for step in range(4):
            stream.batch(RNG, step, range(8))
    assert f"{path}/b/3.png" in str(raised.value) and "--skip-damaged" in str(raised.value)


@pytest.mark.parametrize("kept", [True, False])
def test_damaged_images_are_replaced_alike_whoever_meets_them_first(kept, tmp_path, monkeypatch):
    if not kept:
        monkeypatch.setattr("distillkit.data.stream.KEPT_BYTES", 0)
    path, lines = damaged_folder(tmp_path), []
    whole = open_stream(DataConfig(path=path, skip_damaged=2), None, CPU, say=lines.append)
    batches = [whole.batch(RNG, step, range(16)) for step in range(6)]
    later = open_stream(DataConfig(path=path, skip_damaged=2, workers=0), None, CPU)
    for step in (5, 3):
        again = later.batch(RNG, step, range(16))
        assert torch.equal(again.sample, batches[step].sample)
        assert torch.equal(again.condition["labels"], batches[step].condition["labels"])
    assert len(lines) == 2 and all(any(f"{name}.png" in line for line in lines) for name in ("b/1", "a/4"))
    numbers = {0: {0, 2}, 1: {3, 5}}
    for batch in batches:
        for sample, label in zip(batch.sample, batch.condition["labels"].tolist(), strict=True):
            number = int((sample[0, 0, 0] + 1) * 127.5 + 0.5)
            assert number in numbers[label], "what is read in its place is of its class"


def test_more_damaged_images_than_allowed_end_it(tmp_path):
    stream = open_stream(DataConfig(path=damaged_folder(tmp_path), skip_damaged=1), None, CPU)
    with pytest.raises(DistillkitError, match=r"more damaged images than the 1 "):
        for step in range(8):
            stream.batch(RNG, step, range(8))


def test_images_that_are_damaged_from_their_start_are_found_before_a_run(tmp_path):
    path = unfolded(tmp_path / "x", {f"{k}.png": PNG if k != 7 else b"<html>" for k in range(9)})
    with pytest.raises(DistillkitError, match=r"7\.png"):
        ImageReader(DataConfig(path=path))
    assert "1 damaged" in said(path, skip_damaged=1)
    with pytest.raises(UsageError, match="none of the images"):
        ImageReader(DataConfig(path=unfolded(tmp_path / "y", {"a.png": b""}), skip_damaged=5))


def test_several_sizes_are_found_before_a_run_with_what_to_do(tmp_path):
    contents = {"a/1.png": PNG, "a/2.png": encoded(picture(2, size=(9, 12))), "b/3.png": PNG}
    source = ImageSource(linear_teacher(), DataConfig(path=unfolded(tmp_path / "x", contents)))
    for way in (source.check, source.plan, lambda: source.open(SourceJob(CPU))):
        with pytest.raises(UsageError, match=r"9 x 12.*2\.png.*--data-resolution 8"):
            way()
    line = said(tmp_path / "x", resolution=10)
    assert "8 x 8 to 9 x 12" in line and "10 x 10" in line and "3 images are smaller" in line


def test_an_opened_source_says_its_line(tmp_path):
    lines = []
    path = unfolded(tmp_path / "x", {"a/1.png": PNG, "b/1.png": PNG})
    ImageSource(linear_teacher(), DataConfig(path=path)).open(SourceJob(CPU, say=lines.append))
    assert len(lines) == 1 and "2 images in 2 classes (a 1, b 1)" in lines[0]


def test_names_from_files_are_printed_without_control_characters(tmp_path):
    path = unfolded(tmp_path / "x", {"a\x1b[31m/1.png": PNG, "b\nc/1.png": PNG})
    line = said(path)
    assert "\x1b" not in line and "\n" not in line and "2 classes" in line
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x" / "b\nc" / "1.png")), np.asarray(picture(1)))
