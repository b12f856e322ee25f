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

from distillkit import ClassLabels, DistillkitError, Points, SampleRNG, SourceJob, Unconditional, UsageError
from distillkit.data.config import DataConfig
from distillkit.data.decoding import decode
from distillkit.data.files import open_images
from distillkit.data.images import ImageSource
from distillkit.data.memory import MemoryImages
from distillkit.data.reader import ImageReader
from distillkit.data.stream import ImageStream, open_stream
from tests.data.teachers import HalfSize, linear_teacher

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
        for sample, label in zip(images.sample, images.condition["labels"], strict=True):
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
        assert torch.equal(whole.condition["labels"], torch.cat([p.condition["labels"] for p in parts]))
    assert len(ahead._ahead) <= 4, "what was decoded ahead and not asked for is dropped"


def test_what_was_decoded_ahead_for_one_seed_is_not_given_to_another(source):
    plain = open_stream(DataConfig(path=source, workers=0), None, CPU)
    ahead = open_stream(DataConfig(path=source, workers=2), None, CPU)
    other = SampleRNG(1)
    for step in range(3):
        ahead.batch(RNG, step, range(6))
        found, wanted = ahead.batch(other, step + 1, range(6)), plain.batch(other, step + 1, range(6))
        assert torch.equal(found.sample, wanted.sample)
        assert torch.equal(found.condition["labels"], wanted.condition["labels"])


def test_balanced_sampling_draws_every_class_alike(tmp_path):
    contents = files(20)
    labels = {"labels": [[name, int(index == 0)] for index, name in enumerate(contents)]}
    path = zipped(tmp_path / "x.zip", contents | {"dataset.json": json.dumps(labels).encode()})
    shares = {}
    for sampling in ("as-is", "balanced"):
        stream = open_stream(DataConfig(path=path, sampling=sampling), None, CPU)
        shares[sampling] = stream.batch(RNG, 0, range(2000)).condition["labels"].float().mean().item()
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
    pixels = decode(encoded(image), "x", resolution=6, filter=filter_name)
    expected = image.crop((4, 0, 16, 12)).resize((6, 6), Image.Resampling[filter_name.upper()])
    assert np.array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3)])
def test_modes(mode, channels):
    data = encoded(picture(1, mode=mode), "JPEG" if mode == "CMYK" else "PNG")
    assert decode(data, "x").shape == (8, 8, channels)


def test_damaged_png_files_are_refused_without_harm(tmp_path):
    """torchvision's decoder ended the process on most of these."""
    data = encoded(picture(1, size=(16, 16)))
    for place in range(8, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 16
        try:
            assert decode(bytes(damaged), "x").shape[2] in (1, 3)
        except DistillkitError as error:
            assert "x" in str(error)


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
def test_an_image_that_turns_out_wrong_later_is_named(workers, tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.data.survey.MOST_HEADERS", 2)
    path = zipped(tmp_path / "x.zip", files(3) | {"z.png": encoded(picture(9, size=(9, 8)))})
    stream = open_stream(DataConfig(path=path, workers=workers), None, CPU)
    with pytest.raises(DistillkitError, match=r"z\.png is 9 x 8, .* 8 x 8"):
        for step in range(9):
            stream.batch(RNG, step, range(8))
    resized = open_stream(DataConfig(path=path, resolution=8), None, CPU)
    assert resized.batch(RNG, 0, range(40)).sample.shape == (40, 3, 8, 8)


TEACHERS = {
    "32 pixels": lambda: linear_teacher((3, 32, 32), Unconditional()),
    "grey": lambda: linear_teacher((1, 8, 8)),
    "8 pixels": linear_teacher,
    "unconditional": lambda: linear_teacher(conditioner=Unconditional()),
    "latents of 16 pixels": lambda: linear_teacher((6, 8, 8), Unconditional(), HalfSize()),
    "points": lambda: linear_teacher((2,), Unconditional(), Points()),
}
REFUSED = [
    ({}, "32 pixels", "--data-resolution 32"),
    ({}, "grey", "(1, 8, 8)"),
    ({}, "8 pixels", "no labels"),
    ({}, "latents of 16 pixels", "--data-resolution 16"),
    ({}, "points", "points"),
    ({"sampling": "balanced"}, "unconditional", "needs labels"),
    ({"path": None}, "8 pixels", "--data FILE.zip"),
    ({"path": "absent.zip"}, "8 pixels", "absent.zip"),
    ({"path": "hf:absent/absent"}, "8 pixels", "absent/absent"),
]


@pytest.fixture
def no_network(monkeypatch):
    import datasets

    def refuse(name, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("config", "teacher", "fragment"), REFUSED)
def test_data_that_do_not_fit_the_teacher_are_refused_before_they_are_opened(config, teacher, fragment, tmp_path):
    source = ImageSource(TEACHERS[teacher](), DataConfig(**{"path": zipped(tmp_path / "x.zip", files(4)), **config}))
    ways = [source.check, lambda: source.open(SourceJob(CPU)), source.plan]
    if str(config.get("path")).startswith("hf:"):
        assert "when the run starts" in ways.pop()().summary, "a plan downloads nothing and says so"
    for way in ways:
        with pytest.raises(DistillkitError) as raised:
            way()
        assert fragment in str(raised.value)


def test_more_classes_than_the_teacher_has(tmp_path):
    contents = files(12)
    path = zipped(tmp_path / "x.zip", contents | {"dataset.json": listed(contents, classes=12)})
    source = ImageSource(linear_teacher(), DataConfig(path=path))
    for way in (source.check, source.plan, lambda: source.open(SourceJob(CPU))):
        with pytest.raises(UsageError, match=r"11.*10 classes"):
            way()


def test_an_unconditional_teacher_gets_no_labels(tmp_path):
    contents = files(4)
    path = zipped(tmp_path / "x.zip", contents | {"dataset.json": listed(contents)})
    source = ImageSource(linear_teacher((3, 32, 32), Unconditional()), DataConfig(path=path, resolution=32))
    assert not source.open(SourceJob(CPU)).batch(RNG, 0, range(2)).condition
    assert "without labels" in source.plan().summary


def test_a_plan_says_what_is_served_from_where(tmp_path):
    contents = files(12)
    path = zipped(tmp_path / "x.zip", contents | {"dataset.json": listed(contents)})
    plan = ImageSource(linear_teacher(), DataConfig(path=path)).plan()
    assert all(text in plan.summary for text in ("12 images", "8 x 8 RGB", "3 classes (0 4, 1 4, 2 4", path))
    assert plan.memory_bytes == 12 * 3 * 8 * 8 and plan.evaluations == plan.disk_bytes == 0


def test_a_latent_teacher_gets_latents(tmp_path):
    contents = files(4, size=(16, 16))
    path = zipped(tmp_path / "x.zip", contents)
    teacher = linear_teacher((6, 8, 8), Unconditional(), HalfSize())
    batch = ImageSource(teacher, DataConfig(path=path, flip=True)).open(SourceJob(CPU)).batch(RNG, 0, range(20))
    assert batch.sample.shape == (20, 6, 8, 8) and torch.equal(batch.sample[:, :3], batch.sample[:, 3:])
    whole = torch.from_numpy(np.stack([np.asarray(picture(k, size=(16, 16))) for k in range(4)])).permute(0, 3, 1, 2)
    encodings = teacher.codec.encode(torch.cat([whole, whole.flip(3)]))
    assert all(any(torch.equal(sample, one) for one in encodings) for sample in batch.sample)


def test_classes_keep_their_names(tmp_path):
    path = unfolded(tmp_path / "x", {f"{name}/a.png": encoded(picture(1)) for name in ("cat", "ant", "dog")})
    stream = open_stream(DataConfig(path=path), None, CPU)
    assert stream.files.class_names == ("ant", "cat", "dog")
    assert stream.conditioner == ClassLabels(classes=3, class_names=("ant", "cat", "dog"))


def test_data_that_come_with_the_teacher():
    teacher = linear_teacher((3, 4, 4))
    pixels = torch.randint(0, 256, (30, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    teacher.images = lambda device: MemoryImages(pixels, torch.arange(30) % 10, teacher, device)
    source = ImageSource(teacher, DataConfig())
    source.check()
    assert teacher.spec.name in source.plan().summary
    opened = source.open(SourceJob(CPU))
    whole, part = opened.batch(RNG, 3, range(20)), opened.batch(RNG, 3, range(5, 20))
    assert torch.equal(whole.sample[5:], part.sample)
    numbers = RNG.integers("images", 3, range(20), 30)
    assert torch.equal(whole.sample, pixels[numbers].float() / 127.5 - 1)
    assert torch.equal(whole.condition["labels"], numbers % 10)
    for setting in ({"resolution": 4}, {"flip": True}, {"sampling": "balanced"}):
        with pytest.raises(UsageError, match=next(iter(setting))):
            ImageSource(teacher, DataConfig(**setting)).check()


def test_data_in_memory_pass_through_the_codec_and_have_keys():
    latent = linear_teacher((6, 2, 2), codec=HalfSize())
    pixels = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).to(torch.uint8)
    assert MemoryImages(pixels, torch.tensor([1, 2]), latent, CPU).batch(RNG, 0, range(3)).sample.shape == (3, 6, 2, 2)
    points = linear_teacher((2,), Unconditional(), Points())
    batch = MemoryImages(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64), points, CPU).batch(RNG, 0, range(3))
    assert batch.sample.shape == (3, 2) and not batch.condition
    with pytest.raises(ValueError, match="2 samples with 3 keys"):
        MemoryImages(pixels, torch.arange(3), latent, CPU)


@pytest.mark.parametrize(
    ("teacher", "in_range"), [(linear_teacher(), True), (linear_teacher((6, 8, 8), codec=HalfSize()), False)]
)
def test_synthetic_images_have_the_shapes_and_conditions_of_real_ones(teacher, in_range):
    batch = ImageSource.synthetic(teacher, CPU).batch(RNG, 1, range(64))
    assert batch.sample.shape == (64, *teacher.spec.shape)
    assert bool((batch.sample.abs() <= 1).all()) == in_range
    assert set(batch.condition["labels"].tolist()) == set(range(10))


def test_fingerprint_tells_contents_apart(tmp_path):
    first = open_images(zipped(tmp_path / "a.zip", files(4))).fingerprint
    assert first == open_images(zipped(tmp_path / "b.zip", files(4))).fingerprint
    changed = files(4)
    changed[min(changed)] = encoded(picture(77))
    assert first != open_images(zipped(tmp_path / "c.zip", changed)).fingerprint
    assert first != open_images(zipped(tmp_path / "d.zip", files(4) | {"dataset.json": listed(files(4))})).fingerprint


def test_a_stream_needs_no_more_memory_than_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.data.stream.KEPT_BYTES", 10)
    stream = ImageStream(ImageReader(DataConfig(path=zipped(tmp_path / "x.zip", files(4)))), CPU)
    assert stream._kept is None and stream.batch(RNG, 0, range(3)).sample.shape == (3, 3, 8, 8)
