"""Real images from every kind of source, and every way in which they can be wrong."""

import io
import json
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit import DistillkitError, SampleRNG, UsageError
from distillkit.data.decoding import decode
from distillkit.data.files import open_images
from distillkit.data.stream import DataConfig, ImageStream, open_stream
from distillkit.models.edm.catalog import CATALOG, DIGITS

CPU = torch.device("cpu")
RNG = SampleRNG(0)


def picture(index, size=(8, 8), mode="RGB"):
    """An image whose first pixel tells its number."""
    pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0] = index
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def files(count=12, **options):
    return {f"{index // 4:05d}/img{index:08d}.png": encoded(picture(index, **options)) for index in range(count)}


def listed(names, classes=3):
    return json.dumps({"labels": [[name, index % classes] for index, name in enumerate(sorted(names))]}).encode()


def zipped(path, contents, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return str(path)


def unfolded(path, contents):
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


@pytest.fixture(params=["zip", "compressed zip", "folder", "classes", "saved dataset", "parquet"])
def source(request, tmp_path):
    """Twelve 8 x 8 images of three classes, the number of an image in its first pixel."""
    contents = files()
    described = contents | {"dataset.json": listed(contents)}
    if request.param == "zip":
        return zipped(tmp_path / "x.zip", described)
    if request.param == "compressed zip":
        return zipped(tmp_path / "x.zip", described, compression=zipfile.ZIP_DEFLATED)
    if request.param == "folder":
        return unfolded(tmp_path / "x", described)
    if request.param == "classes":
        return unfolded(tmp_path / "x", {f"{'abc'[i % 3]}/{i:03d}.png": d for i, d in enumerate(contents.values())})
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"image": [{"bytes": d, "path": None} for d in contents.values()], "label": [i % 3 for i in range(12)]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    if request.param == "parquet":
        dataset.to_parquet(tmp_path / "x.parquet")
        return str(tmp_path / "x.parquet")
    dataset.save_to_disk(tmp_path / "x")
    return str(tmp_path / "x")


@pytest.mark.parametrize("workers", [0, 3])
def test_every_kind_of_source_serves_the_same_images(source, workers):
    stream = open_stream(DataConfig(path=source, workers=workers), None, CPU)
    assert len(stream) == 12 and stream.shape == (3, 8, 8) and stream.files.num_classes == 3
    seen = set()
    for step in range(8):
        images = stream.batch(RNG, step, range(6))
        assert images.sample.shape == (6, 3, 8, 8) and images.sample.dtype == torch.float32
        for sample, label in zip(images.sample, images.condition.labels, strict=True):
            pixels = ((sample + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
            number = int(pixels[0, 0, 0])
            assert np.array_equal(pixels, np.asarray(picture(number))) and label == number % 3
            seen.add(number)
    assert seen == set(range(12))


def test_batches_do_not_depend_on_workers_cache_or_how_they_are_cut(source):
    plain = open_stream(DataConfig(path=source, workers=0), None, CPU)
    ahead = open_stream(DataConfig(path=source, workers=2), None, CPU)
    ahead._kept = None
    for step in (0, 1, 2, 5):
        whole = plain.batch(RNG, step, range(6))
        parts = [ahead.batch(RNG, step, r) for r in (range(4), range(4, 6))]
        assert torch.equal(whole.sample, torch.cat([p.sample for p in parts]))
        assert torch.equal(whole.condition.labels, torch.cat([p.condition.labels for p in parts]))
    assert len(ahead._ahead) <= 4, "what was decoded ahead and not asked for is dropped"


def test_balanced_sampling_draws_every_class_alike(tmp_path):
    contents = files(20)
    labels = {"labels": [[name, int(index == 0)] for index, name in enumerate(contents)]}
    path = zipped(tmp_path / "x.zip", contents | {"dataset.json": json.dumps(labels).encode()})
    shares = {}
    for sampling in ("as-is", "balanced"):
        stream = open_stream(DataConfig(path=path, sampling=sampling), None, CPU)
        shares[sampling] = stream.batch(RNG, 0, range(2000)).condition.labels.float().mean().item()
    assert shares["as-is"] == pytest.approx(0.05, abs=0.02) and shares["balanced"] == pytest.approx(0.5, abs=0.04)


def test_flips_are_drawn_per_sample(tmp_path):
    path = zipped(tmp_path / "x.zip", files(1))
    straight = open_stream(DataConfig(path=path), None, CPU).batch(RNG, 0, range(400)).sample
    flipped = open_stream(DataConfig(path=path, flip=True), None, CPU).batch(RNG, 0, range(400)).sample
    mirrored = (flipped == straight.flip(3)).all(dim=(1, 2, 3))
    assert torch.equal(flipped[~mirrored], straight[~mirrored]) and 150 < int(mirrored.sum()) < 250


@pytest.mark.parametrize("filter_name", ["box", "bilinear", "bicubic", "lanczos"])
def test_resizing_crops_the_centre_and_uses_the_named_filter(filter_name):
    image = picture(3, size=(20, 12))
    pixels = decode(encoded(image), "x", resolution=6, filter_name=filter_name)
    expected = image.crop((4, 0, 16, 12)).resize((6, 6), Image.Resampling[filter_name.upper()])
    assert np.array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3)])
def test_modes(mode, channels):
    data = encoded(picture(1, mode=mode), "JPEG" if mode == "CMYK" else "PNG")
    assert decode(data, "x").shape == (8, 8, channels)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "LA"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 33)])
def test_the_fast_way_for_ordinary_png_files_gives_the_same_pixels(mode, size, monkeypatch):
    image = picture(5, size=size)
    image = Image.fromarray(np.full((size[1], size[0]), 4000, np.uint16)) if mode == "I;16" else image.convert(mode)
    fast = decode(encoded(image), "x")
    monkeypatch.setattr("distillkit.data.decoding._plain_png", lambda data: None)
    assert np.array_equal(fast, decode(encoded(image), "x"))


def test_grey_images_among_coloured_ones_are_repeated(tmp_path):
    path = zipped(tmp_path / "x.zip", {"a.png": encoded(picture(1)), "b.png": encoded(picture(2, mode="L"))})
    sample = open_stream(DataConfig(path=path), None, CPU).batch(RNG, 0, range(50)).sample
    assert any((s[0] == s[1]).all() for s in sample) and not all((s[0] == s[1]).all() for s in sample)


def huge_png(width=40_000, height=40_000):
    """A PNG of a few hundred bytes that claims 1.6 billion pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GOOD = files(4)
WRONG = {
    "nothing": ({}, UsageError, "no images in"),
    "no image files": ({"a.txt": b"x"}, UsageError, "no images in"),
    "unreadable image": ({"a.png": b"not an image"}, DistillkitError, "a.png"),
    "truncated image": ({"a.png": encoded(picture(1))[:60]}, DistillkitError, "a.png"),
    "bomb": ({"a.png": huge_png()}, DistillkitError, "a.png"),
    "labels not JSON": (GOOD | {"dataset.json": b"{"}, DistillkitError, "dataset.json"),
    "labels of another form": (GOOD | {"dataset.json": b'{"labels": [1, 2]}'}, DistillkitError, "dataset.json"),
    "no labels key": (GOOD | {"dataset.json": b"{}"}, DistillkitError, "labels"),
    "one label missing": (GOOD | {"dataset.json": listed(sorted(GOOD)[1:])}, DistillkitError, "img00000000.png"),
    "negative label": (
        GOOD | {"dataset.json": listed(GOOD).replace(b", 2]", b", -1]")}, DistillkitError, "img00000002.png",
    ),
    "one-hot label": (
        GOOD | {"dataset.json": listed(GOOD).replace(b", 2]", b", [0, 1]]")}, DistillkitError, "class number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_is_named_within_seconds(name, kind, tmp_path):
    contents, error, fragment = WRONG[name]
    path = zipped(tmp_path / "x.zip", contents) if kind == "zip" else unfolded(tmp_path / "x", contents)
    (tmp_path / "x").mkdir(exist_ok=True)
    began = time.monotonic()
    with pytest.raises(error) as raised:
        open_stream(DataConfig(path=path), None, CPU)
    assert fragment in str(raised.value) and time.monotonic() - began < 5


@pytest.mark.parametrize("member", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png"])
def test_zip_members_that_point_outside_are_refused_by_name(member, tmp_path):
    with pytest.raises(DistillkitError, match=r"evil\.png"):
        open_images(zipped(tmp_path / "x.zip", {member: b"x"}))


def test_damaged_zip_files(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UsageError, match="not a readable zip"):
        open_images(str(tmp_path / "x.zip"))
    path = zipped(tmp_path / "y.zip", GOOD)
    data = bytearray((tmp_path / "y.zip").read_bytes())
    place = data.index(b"IDAT") + 20
    data[place] ^= 1
    (tmp_path / "y.zip").write_bytes(data)
    with pytest.raises(DistillkitError, match=r"img00000000\.png is damaged"):
        open_stream(DataConfig(path=path), None, CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_turns_out_wrong_later_is_named(workers, tmp_path):
    path = zipped(tmp_path / "x.zip", files(3) | {"z.png": encoded(picture(9, size=(9, 8)))})
    stream = open_stream(DataConfig(path=path, workers=workers), None, CPU)
    with pytest.raises(DistillkitError, match=r"z\.png is 9 x 8, RGB and the first image is 8 x 8"):
        for step in range(9):
            stream.batch(RNG, step, range(8))
    resized = open_stream(DataConfig(path=path, resolution=8), None, CPU)
    assert resized.batch(RNG, 0, range(40)).sample.shape == (40, 3, 8, 8)


@pytest.mark.parametrize(
    ("config", "teacher", "fragment"),
    [
        ({}, "edm-cifar10-cond", "--data-resolution 32"),
        ({"resolution": 32}, "edm-cifar10-cond", "no labels"),
        ({}, "digits", "(3, 8, 8)"),
        ({"sampling": "balanced"}, None, "needs labels"),
        ({"path": None}, None, "--data FILE.zip"),
        ({"path": "absent.zip"}, None, "no images at absent.zip"),
        ({"path": "hf:absent/absent"}, None, "absent/absent"),
    ],
)
def test_data_that_do_not_fit_the_teacher(config, teacher, fragment, tmp_path, monkeypatch):
    import datasets

    def no_network(name, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    settings = {"path": zipped(tmp_path / "x.zip", files(4)), **config}
    spec = CATALOG[teacher].spec if teacher else None
    with pytest.raises(DistillkitError) as raised:
        open_stream(DataConfig(**settings), spec, CPU)
    assert fragment in str(raised.value)


def test_more_classes_than_the_teacher_has(tmp_path):
    contents = {n: encoded(picture(i, mode="L")) for i, n in enumerate(files(12))}
    path = zipped(tmp_path / "x.zip", contents | {"dataset.json": listed(contents, classes=12)})
    with pytest.raises(UsageError, match="labels up to 11 and the teacher 10 classes"):
        open_stream(DataConfig(path=path), DIGITS.spec, CPU)


def test_an_unconditional_teacher_gets_no_labels(tmp_path):
    contents = files(4)
    path = zipped(tmp_path / "x.zip", contents | {"dataset.json": listed(contents)})
    stream = open_stream(DataConfig(path=path, resolution=32), CATALOG["edm-cifar10-uncond"].spec, CPU)
    assert not stream.batch(RNG, 0, range(2)).condition


def test_fingerprint_tells_contents_apart(tmp_path):
    first = open_images(zipped(tmp_path / "a.zip", files(4))).fingerprint
    assert first == open_images(zipped(tmp_path / "b.zip", files(4))).fingerprint
    changed = files(4)
    changed[min(changed)] = encoded(picture(77))
    assert first != open_images(zipped(tmp_path / "c.zip", changed)).fingerprint
    assert first != open_images(zipped(tmp_path / "d.zip", files(4) | {"dataset.json": listed(files(4))})).fingerprint


def test_a_stream_needs_no_more_memory_than_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.data.stream.KEPT_BYTES", 10)
    stream = ImageStream(open_images(zipped(tmp_path / "x.zip", files(4))), DataConfig(path="x"), CPU)
    assert stream._kept is None and stream.batch(RNG, 0, range(3)).sample.shape == (3, 3, 8, 8)
