"""Zip and .npz files: what is damaged, hostile or unusual is one message naming file and member, in bounded memory."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from distillkit import DistillkitError, UsageError
from distillkit.data.config import DataConfig
from distillkit.data.files import open_images
from distillkit.data.reader import ImageReader
from tests.data.test_images import encoded, listed, picture, zipped

PNG = encoded(picture(1))
GOOD = {"1.png": PNG, "2.png": encoded(picture(2))}
LABELLED = GOOD | {"dataset.json": listed(GOOD, classes=2)}


def changed(path, member, local=(), central=()):
    """The zip file with bytes of a member's headers overwritten: (offset, format, value) each."""
    data = bytearray(Path(path).read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(member).header_offset
    place = data.index(b"PK\x01\x02")
    while data[place + 46 : place + 46 + len(member)] != member.encode():
        place = data.index(b"PK\x01\x02", place + 4)
    for first, changes in ((start, local), (place, central)):
        for offset, kind, value in changes:
            struct.pack_into(kind, data, first + offset, value)
    Path(path).write_bytes(data)
    return path


FAULTS = {
    "encrypted": ([(6, "<H", 1)], [(8, "<H", 1)], "encrypted"),
    "another checksum": ([(14, "<I", 7)], [(16, "<I", 7)], "checksum"),
    "an unknown compression": ([(8, "<H", 77)], [(10, "<H", 77)], "method 77"),
    "an offset beyond the end": ([], [(42, "<I", 2**31)], ""),
    "an offset to elsewhere": ([], [(42, "<I", 5)], ""),
    "a size beyond the end": ([], [(20, "<I", 2**27), (24, "<I", 2**27)], ""),
    "a size beyond all bounds": ([], [(20, "<I", 2**31), (24, "<I", 2**31)], ""),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("member", ["2.png", "dataset.json"])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_members_are_one_message(name, member, compression, tmp_path):
    local, central, fragment = FAULTS[name]
    path = changed(zipped(tmp_path / "x.zip", LABELLED, compression=compression), member, local, central)
    with pytest.raises(DistillkitError) as raised:
        reader = ImageReader(DataConfig(path=path))
        reader.pixels(1)
    assert path in str(raised.value) and fragment in str(raised.value)
    assert member in str(raised.value) or "not a readable zip" in str(raised.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("member", ["2.png", "dataset.json"])
def test_compressions_that_grow_without_bound_are_refused(member, compression, tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in LABELLED.items():
            archive.writestr(name, data, compression if name == member else zipfile.ZIP_STORED)
    with pytest.raises(DistillkitError, match=r"bzip2|LZMA") as raised:
        open_images(str(path))
    assert member in str(raised.value)


def test_members_never_take_more_than_they_claim(tmp_path):
    bomb = {"1.png": PNG, "2.png": bytes(2**25)}
    path = zipped(tmp_path / "x.zip", bomb, compression=zipfile.ZIP_DEFLATED)
    changed(path, "2.png", [(22, "<I", 1000)], [(24, "<I", 1000)])
    images = open_images(path)
    with pytest.raises(DistillkitError, match=r"2\.png"):
        images.read(1)


def test_a_list_of_labels_that_claims_much_is_refused_unread(tmp_path):
    contents = GOOD | {"dataset.json": b'{"labels": [' + b" " * 2**23 + b"]}"}
    with pytest.raises(DistillkitError, match=r"dataset\.json claims"):
        open_images(zipped(tmp_path / "x.zip", contents, compression=zipfile.ZIP_DEFLATED))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_a_zip_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.png", PNG)
        archive.writestr("a/1.png", encoded(picture(2)))
    with pytest.raises(DistillkitError, match=r"a/1\.png twice"):
        open_images(str(tmp_path / "x.zip"))


def test_backslashes_of_old_tools_are_folders(tmp_path):
    images = open_images(zipped(tmp_path / "x.zip", {"ant\\1.png": PNG, "bee\\1.png": PNG}))
    assert images.class_names == ("ant", "bee") and images.read(1) == PNG


def test_links_and_folders_in_a_zip_file_are_no_images(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("1.png", PNG)
        link = zipfile.ZipInfo("2.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.mkdir("3.png")
    reader = ImageReader(DataConfig(path=str(tmp_path / "x.zip")))
    assert len(reader) == 1 and "1 link (such as 2.png)" in reader.summary


def test_a_zip_file_that_is_cut_later_is_one_message(tmp_path):
    path = zipped(tmp_path / "x.zip", {f"{k}.png": PNG for k in range(50)})
    images = open_images(path)
    os.truncate(path, 300)
    with pytest.raises(DistillkitError, match=r"9\.png"):
        images.read(49)


def test_a_damaged_member_is_replaced_where_that_is_allowed(tmp_path):
    path = changed(zipped(tmp_path / "x.zip", GOOD), "2.png", [], [(16, "<I", 7)])
    reader = ImageReader(DataConfig(path=path, skip_damaged=1))
    assert np.array_equal(reader.pixels(1), np.asarray(picture(1)))


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("images", "channels"), [(IMAGES, 3), (IMAGES[..., :1], 1), (IMAGES[..., 0], 1)])
def test_images_in_an_npz_file(save, images, channels, tmp_path):
    save(tmp_path / "x.npz", images, np.arange(5) % 2)
    reader = ImageReader(DataConfig(path=str(tmp_path / "x.npz")))
    assert len(reader) == 5 and reader.shape == (channels, 8, 8)
    assert np.array_equal(reader.pixels(3).reshape(images[3].shape), images[3])
    assert reader.files.labels.tolist() == [0, 1, 0, 1, 0] and "2 classes" in reader.summary


WRONG_ARRAYS = {
    "floats": ({"arr_0": IMAGES / 255}, "float64"),
    "channels first": ({"arr_0": IMAGES.transpose(0, 3, 1, 2)}, "(5, 3, 8, 8)"),
    "statistics": ({"mu": np.zeros(4), "sigma": np.zeros((4, 4))}, "--reference"),
    "several": ({"train": IMAGES, "test": IMAGES}, "test"),
    "nothing": ({}, "nothing"),
    "none in it": ({"arr_0": IMAGES[:0]}, "no images"),
    "objects": ({"arr_0": np.array([{}], dtype=object)}, "objects"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_wrong_npz_files_are_one_message(name, tmp_path):
    arrays, fragment = WRONG_ARRAYS[name]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DistillkitError) as raised:
        open_images(str(tmp_path / "x.npz"))
    assert fragment in str(raised.value) and "x.npz" in str(raised.value)


def test_damaged_npz_files_are_one_message(tmp_path):
    kept = io.BytesIO()
    np.savez_compressed(kept, IMAGES)
    rng = np.random.default_rng(0)
    for trial in range(60):
        data = bytearray(kept.getvalue())
        data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
        (tmp_path / "x.npz").write_bytes(data[: rng.integers(0, len(data))] if trial % 4 == 0 else data)
        try:
            ImageReader(DataConfig(path=str(tmp_path / "x.npz")))
        except DistillkitError as error:
            assert "x.npz" in str(error)


def test_an_npz_file_that_claims_much_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 64, 64, 1)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(2**20))
    changed(str(tmp_path / "x.npz"), "arr_0.npy", [], [(24, "<I", 2**32 - 10)])
    with pytest.raises(DistillkitError, match=r"x\.npz"):
        open_images(str(tmp_path / "x.npz"))
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(UsageError, match=r"x\.npz"):
        open_images(str(tmp_path / "x.npz"))
