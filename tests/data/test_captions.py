"""Captions of images: beside them, in tables, in data sets and in tar files; they are the prompts of text models."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from distillkit import DistillkitError, PromptList, Prompts, SampleRNG, SourceJob, UsageError
from distillkit.data.captions import captions_of, prompt_numbers
from distillkit.data.config import DataConfig
from distillkit.data.files import open_images
from distillkit.data.images import ImageSource
from distillkit.data.reader import ImageReader
from distillkit.data.stream import ImageStream
from tests.data.teachers import Letters, linear_teacher
from tests.data.test_images import encoded, picture

PNG = [encoded(picture(k)) for k in range(4)]
TEXTS = ["a cat", "zwei Bären", "", "a dog, asleep"]
CPU = torch.device("cpu")


def in_folder(path):
    path.mkdir()
    for k, (data, text) in enumerate(zip(PNG, TEXTS, strict=True)):
        (path / f"{k}.png").write_bytes(data)
        if text:
            (path / f"{k}.txt").write_text(f"{text}\n", encoding="utf-8")
    return path


def with_metadata(path, ending):
    path.mkdir()
    for k, data in enumerate(PNG):
        (path / f"{k}.png").write_bytes(data)
    rows = [{"file_name": f"{k}.png", "text": text} for k, text in enumerate(TEXTS)]
    write_table(path / f"metadata{ending}", rows[::-1])
    return path


def write_table(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        quoted = ([f'"{value}"' for value in row.values()] for row in rows)
        path.write_text("\n".join([",".join(rows[0]), *(",".join(row) for row in quoted)]), encoding="utf-8")


def as_table(path, ending):
    folder = in_folder(path)
    rows = [{"image": f"{path.name}/{k}.png", "caption": text, "title": "x"} for k, text in enumerate(TEXTS)]
    write_table(folder.parent / f"{path.name}{ending}", rows)
    return folder.parent / f"{path.name}{ending}"


def zipped_metadata(path):
    folder = with_metadata(path, ".csv")
    with zipfile.ZipFile(f"{path}.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"inner/{file.name}")
    return path.with_suffix(".zip")


def in_zip(path):
    folder = in_folder(path)
    with zipfile.ZipFile(f"{path}.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"inner/{file.name}")
    return path.with_suffix(".zip")


def in_tar(path, samples=range(4), kind="txt"):
    with tarfile.open(path, "w") as archive:
        for k in samples:
            caption = TEXTS[k].encode() if kind == "txt" else json.dumps({"Caption": TEXTS[k], "n": 1}).encode()
            members = {f"{k:04d}.png": PNG[k], f"{k:04d}.{kind}": caption, f"{k:04d}.cls": b"1", f"{k:04d}.x.npy": b""}
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def in_tars(path):
    path.mkdir()
    in_tar(path / "00000.tar", range(3))
    in_tar(path / "00001.tar", range(3, 4))
    return path


def in_parquet(path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": PNG, "caption": [text or None for text in TEXTS], "other": TEXTS}), path)
    return path


WAYS = {
    "folder": lambda path: in_folder(path / "a"),
    "metadata.jsonl": lambda path: with_metadata(path / "a", ".jsonl"),
    "metadata.csv": lambda path: with_metadata(path / "a", ".csv"),
    "table.jsonl": lambda path: as_table(path / "a", ".jsonl"),
    "table.csv": lambda path: as_table(path / "a", ".csv"),
    "zip with metadata": lambda path: zipped_metadata(path / "a"),
    "zip": lambda path: in_zip(path / "a"),
    "tar": lambda path: in_tar(path / "a.tar"),
    "tar with json": lambda path: in_tar(path / "a.tar", kind="json"),
    "tars": lambda path: in_tars(path / "a"),
    "parquet": lambda path: in_parquet(path / "a.parquet"),
}


@pytest.mark.parametrize("way", WAYS)
def test_captions_belong_to_their_images(way, tmp_path):
    path = str(WAYS[way](tmp_path))
    files = open_images(path)
    assert list(files.captions) == TEXTS
    reader = ImageReader(DataConfig(path=path))
    for k in range(4):
        assert np.array_equal(reader.pixels(k), np.asarray(picture(k))), files.where(k)
    assert captions_of(files, "x").sha256 == PromptList.of(TEXTS, "").sha256
    assert (files.labels is None) == (not way.startswith("tar"))


def text_teacher(texts=None, shape=(3, 8, 8)):
    teacher = linear_teacher(shape, Prompts(encoder=Letters()))
    if texts:
        teacher.conditioner = teacher.conditioner.with_prompts(PromptList.of(texts, "list"))
    return teacher


def source(path, teacher, **config):
    return ImageSource(teacher, DataConfig(path=str(path), workers=0, **config))


def drawn(images, count=40):
    """Number of the image and condition of each that is drawn."""
    rng, pixels = SampleRNG(0), [torch.from_numpy(np.array(picture(k))).permute(2, 0, 1) for k in range(4)]
    batch = images.batch(rng, 0, range(count))
    seen = [next(k for k in range(4) if torch.equal(images.codec.decode(s[None])[0], pixels[k])) for s in batch.sample]
    assert set(seen) == {0, 1, 2, 3}
    return seen, batch.condition


def test_captions_are_the_list_of_a_teacher_that_has_none(tmp_path):
    teacher = text_teacher()
    found = source(in_folder(tmp_path / "a"), teacher)
    prompts = found.prompts
    assert list(prompts.texts) == TEXTS and "the captions in" in prompts.name
    teacher.conditioner = teacher.conditioner.with_prompts(prompts)
    said = []
    seen, condition = drawn(found.open(SourceJob(CPU, say=said.append)))
    assert torch.equal(condition["mask"], Letters().encode([TEXTS[k] for k in seen])["mask"])
    assert "with captions; 1 image without, used with the empty prompt" in said[0]


def test_captions_beside_a_list_have_numbers_after_it(tmp_path):
    teacher = text_teacher(["one", "two", "a cat"])
    found = source(in_folder(tmp_path / "a"), teacher)
    seen, condition = drawn(found.open(SourceJob(CPU)))
    assert torch.equal(condition["numbers"], Letters().encode([TEXTS[k] for k in seen])["numbers"])
    assert teacher.conditioner.count == 3, "they are not drawn as prompts"
    keys = prompt_numbers(open_images(str(tmp_path / "a")), teacher.conditioner)[0]
    assert keys[0] == 2 and keys[1:].min() >= 3, "those in the list have their numbers there"


def test_names_of_classes_are_captions_where_there_are_no_others(tmp_path):
    for k, data in enumerate(PNG):
        (tmp_path / "a" / ("bird", "house")[k % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / ("bird", "house")[k % 2] / f"{k}.png").write_bytes(data)
    assert list(source(tmp_path / "a", text_teacher()).prompts.texts) == ["bird", "bird", "house", "house"]


def test_other_captions_are_other_data(tmp_path):
    path = in_folder(tmp_path / "a")
    before = source(path, text_teacher()).fingerprint
    plain = ImageSource(linear_teacher((3, 8, 8), None), DataConfig(path=str(path))).fingerprint
    (path / "0.txt").write_text("a cow")
    assert source(path, text_teacher()).fingerprint != before
    assert ImageSource(linear_teacher((3, 8, 8), None), DataConfig(path=str(path))).fingerprint == plain


def test_images_without_captions_are_refused_by_a_model_of_text(tmp_path):
    path = tmp_path / "a"
    path.mkdir()
    (path / "0.png").write_bytes(PNG[0])
    (path / "unrelated.txt").write_text("not a caption")
    with pytest.raises(UsageError, match="have no captions"):
        source(path, text_teacher(["one"])).check()
    assert source(path, text_teacher()).prompts is None


def test_captions_that_are_none_are_said(tmp_path):
    path = in_folder(tmp_path / "a")
    for data, says in (
        (b"\xff\xfe", "0.txt is not UTF-8"),
        (b"a\0b", "caption 1"),
        (b"x" * 600_000, "0.txt has more than"),
    ):
        (path / "0.txt").write_bytes(data)
        with pytest.raises(DistillkitError, match=says):
            source(path, text_teacher()).check()
    (path / "0.txt").unlink()
    (path / "0.txt").mkdir()
    with pytest.raises(DistillkitError, match=r"0\.txt"):
        source(path, text_teacher()).check()
    for config, says in (
        ({"caption_column": "text"}, "metadata.jsonl"),
        ({"image_column": "x"}, "--data-image-column"),
    ):
        with pytest.raises(UsageError, match=says):
            source(tmp_path / "a", text_teacher(), **config).check()
    table = as_table(tmp_path / "b", ".csv")
    with pytest.raises(UsageError, match=r"--data-caption-column words: .*columns: image, caption, title"):
        source(table, text_teacher(), caption_column="words").check()
    assert source(table, text_teacher(), caption_column="title").prompts.texts[0] == "x"
    with pytest.raises(UsageError, match="--data-caption-column"):
        source(in_parquet(tmp_path / "c.parquet"), text_teacher(), caption_column="image").check()


@pytest.mark.parametrize("name", ["empty.tar", "torn.tar", "zip.tar", "twice.tar", "link.tar", "mixed.tar", "cut.tar"])
def test_tar_files_that_cannot_be_read_are_said(name, tmp_path):
    path = in_tar(tmp_path / name)
    data = path.read_bytes()
    if name == "empty.tar":
        path.write_bytes(b"")
    elif name == "torn.tar":
        path.write_bytes(data[:512] + b"\xff" * 512 * 20)
    elif name == "cut.tar":
        path.write_bytes(data[:700])
    elif name == "zip.tar":
        path.write_bytes(b"PK\x03\x04" + bytes(1000))
    else:
        with tarfile.open(path, "w") as archive:
            for member in {"twice.tar": ("a.png", "a.jpg"), "mixed.tar": ("a.png", "b.png", "b.cls")}.get(name, ()):
                info = tarfile.TarInfo(member)
                info.size = len(PNG[0])
                archive.addfile(info, io.BytesIO(PNG[0]))
            if name == "link.tar":
                info = tarfile.TarInfo("a.png")
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
    with pytest.raises(DistillkitError, match=name.partition(".")[0]) as error:
        ImageReader(DataConfig(path=str(path)))
    assert len(str(error.value)) < 500


def test_streams_without_a_teacher_are_as_they_were(tmp_path):
    stream = ImageStream(ImageReader(DataConfig(path=str(in_folder(tmp_path / "a")), workers=0)), CPU)
    assert not stream.batch(SampleRNG(0), 0, range(2)).condition
