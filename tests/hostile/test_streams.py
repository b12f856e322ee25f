"""Tar and parquet files from anybody as streams: names are never paths, sizes are bounded, nothing runs."""

import io
import pickle
import tarfile
import time
import zipfile

import fsspec
import numpy as np
import pytest
import torch

from distillkit import DistillkitError
from distillkit.data import stream_parquet, stream_tars
from distillkit.data.files import open_images
from distillkit.data.member_arrays import arrays_in
from tests.data.streams import npy, packed, pictured, tensors

PNG = pictured(1)[0]["png"]


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    fsspec.filesystem("memory").store.clear()


def opened(data, name="x.tar"):
    fsspec.filesystem("memory").pipe_file(f"/{name}", data)
    return open_images(f"memory://{name}")


def refusal(data, name="x.tar"):
    began = time.process_time()
    with pytest.raises(DistillkitError) as refused:
        sample = opened(data, name).sample(0)
        sample.arrays() if b"safetensors" in data else sample.image(10)
    assert time.process_time() - began < 20
    message = str(refused.value)
    assert name in message and len(message) < 900 and "\x1b" not in message and "\n" not in message
    return message


def member(archive, name, data=b"", **facts):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def tar_of(*members, **options):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for name, data, facts in members:
            member(archive, name, data, **facts)
    return out.getvalue()


@pytest.mark.parametrize("name", ["/etc/x.png", "a/b.png", "x" * 300 + ".png", "\x1b[31m.png", "ä.png"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_members_are_only_names(name, format, tmp_path):
    files = opened(tar_of((name, PNG, {}), (f"{name[:-4]}.txt", b"text", {}), format=format))
    assert files.read(0) == PNG and list(files.captions) == ["text"] and "\x1b" not in files.where(0)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_links_paths_upwards_devices_and_hidden_members_are_passed_by():
    links = [("0.png", b"", {"type": kind, "linkname": "/etc/passwd"}) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)]
    others = [
        ("1.png", b"", {"type": tarfile.FIFOTYPE}),
        ("2.png", b"", {"type": tarfile.CHRTYPE}),
        ("._3.png", PNG, {}),
        ("../../x.png", PNG, {}),
    ]
    files = opened(tar_of(*links, *others, ("4.png", PNG, {})))
    assert len(files) == 1 and files.read(0) == PNG


@pytest.mark.parametrize(
    "kind", ["size", "sample", "members", "apart", "twice", "pickle", "gzip", "cut", "class", "caption", "empty"]
)
def test_damaged_and_greedy_tars(kind, monkeypatch):
    good = packed(pictured(3))
    if kind == "size":
        monkeypatch.setattr(stream_tars, "MOST_BYTES", 100)
        assert "more than 100 bytes" in refusal(good)
    elif kind == "sample":
        monkeypatch.setattr(stream_tars, "MOST_SAMPLE", 1000)
        assert "more than 1,000 bytes" in refusal(good)
    elif kind == "members":
        monkeypatch.setattr(stream_tars, "MOST_MEMBERS", 2)
        assert "more than 2 members" in refusal(good)
    elif kind == "apart":
        apart = [("0.png", PNG, {}), ("1.png", PNG, {}), ("0.txt", b"", {})]
        assert "do not lie together" in refusal(tar_of(*apart))
    elif kind == "twice":
        message = refusal(
            packed([{"a.safetensors": tensors(x=torch.zeros(1)), "b.safetensors": tensors(x=torch.zeros(1))}])
        )
        assert "two arrays called x" in message
    elif kind == "pickle":
        assert "could run code" in refusal(packed([{"pt": pickle.dumps([1])}]))
    elif kind == "gzip":
        assert "compressed ones are unpacked first" in refusal(b"\x1f\x8b" + good)
    elif kind == "cut":
        assert "end" in refusal(good[: len(good) // 2 // 512 * 512 + 600])
    elif kind == "class":
        assert "not a class number" in refusal(packed([{"png": PNG, "cls": b"1e9"}]))
    elif kind == "caption":
        assert "not UTF-8" in refusal(packed([{"png": PNG, "txt": b"\xff\xfe"}]))
    else:
        assert "no images or latents" in refusal(packed([{"bin2": b"x"}]))


def test_a_file_that_changes_after_it_was_indexed_is_noticed():
    files = opened(packed(pictured(8)))
    fsspec.filesystem("memory").pipe_file("/x.tar", b"\xff" * len(packed(pictured(8))))
    with pytest.raises(DistillkitError, match="has changed since it was first read"):
        files.read(3)


def bomb(deflated=True):
    out, data = io.BytesIO(), io.BytesIO()
    np.save(data, np.zeros(40 * 2**20, np.uint8))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for k in range(8):
            archive.writestr(f"{k}.npy", data.getvalue())
    return out.getvalue()


def claiming(shape, dtype="<f4", data=b"\0" * 64):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("ending", "data"),
    [
        (".npy", claiming("(1000000000, 1000000000)")),
        (".npy", claiming("(-4, -4)")),
        (".npy", claiming("(4,)", "|O")),
        (".npy", claiming("(4,)", "|S100000")),
        (".npy", claiming("__import__('os').system('touch pwned')")),
        (".npy", b"\x93NUMPY\x01\x00"),
        (".npy", pickle.dumps({"a": 1})),
        (".npz", bomb()),
        (".npz", b"PK\x03\x04"),
        (".safetensors", (2**62).to_bytes(8, "little") + b"{}"),
        (".safetensors", tensors(a=torch.zeros(8))[:-8]),
        (".safetensors", tensors(**{f"t{k}": torch.zeros(1) for k in range(200)})),
    ],
)  # fmt: skip
def test_arrays_that_lie_of_themselves(ending, data, tmp_path):
    began = time.process_time()
    with pytest.raises(DistillkitError, match=r"x.tar:0"):
        arrays_in(memoryview(data), ending, "", "x.tar:0")
    assert time.process_time() - began < 20 and not (tmp_path / "pwned").exists()


def test_a_good_array_is_read_whatever_its_order():
    value = np.arange(6.0).reshape(2, 3)
    assert torch.equal(
        arrays_in(memoryview(npy(value.astype(">f4"))), ".npy", "", "x")[0][""], torch.tensor(value).float()
    )


def parquet_of(**columns):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    options = columns.pop("options", {})
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def test_hostile_parquet(monkeypatch):
    good = parquet_of(image=[PNG, PNG], caption=["a", "b"])
    assert opened(good, "x.parquet").read(1) == PNG
    assert "cannot read memory://y.parquet" in refusal(good[: len(good) // 2], "y.parquet")
    assert "cannot read" in refusal(b"PAR1" + b"\xff" * 100 + b"PAR1", "z.parquet")
    paths = parquet_of(image=[{"bytes": None, "path": "/etc/passwd"}])
    assert "not followed" in refusal(paths, "p.parquet")
    assert "no column of images" in refusal(parquet_of(a=[1], b=["x"]), "c.parquet")
    assert "no class number" in refusal(parquet_of(image=[PNG], label=[-5]), "l.parquet")
    ragged = parquet_of(latent=[[[1.0], [2.0, 3.0]]])
    files = opened(ragged, "r.parquet")
    with pytest.raises(DistillkitError, match="differ in length"):
        files.sample(0).arrays()
    monkeypatch.setattr(stream_parquet, "MOST_GROUP", 2**16)
    large = parquet_of(image=[bytes(2**15) + bytes([k]) for k in range(8)])
    assert "row_group_size" in refusal(large, "g.parquet")
    same = parquet_of(image=[bytes(2**12)] * 4000)
    assert "more bytes than it claims" in refusal(same, "d.parquet")
