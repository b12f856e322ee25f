"""Every kind of image file becomes the pixels that people see in it, or one message; nothing else is opened."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit import DistillkitError, UsageError
from distillkit.data.config import DataConfig
from distillkit.data.decoding import MOST_PIXELS, Decoder, decode, formats, suffixes
from distillkit.data.reader import ImageReader
from distillkit.data.stream import open_stream
from tests.data.teachers import linear_teacher
from tests.data.test_images import CPU, RNG, encoded, huge_png, picture, unfolded

LOSSLESS = ["PNG", "BMP", "TIFF", "PPM", "JPEG2000", "PCX", "SGI", "QOI"]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_keep_every_pixel(kind):
    assert np.array_equal(decode(encoded(picture(1, size=(32, 32)), kind), "x"), np.asarray(picture(1, size=(32, 32))))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_other_formats_are_read(kind):
    smooth = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    pixels = decode(encoded(smooth, kind), "x").astype(int)
    assert np.abs(pixels - np.asarray(smooth)).max() < 12


def test_all_of_a_folder_of_mixed_formats_are_taken(tmp_path):
    ends = {"PNG": "png", "JPEG": "jfif", "WEBP": "WebP", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "PPM": "pgm",
            "JPEG2000": "jp2", "AVIF": "avif", "TGA": "tga"}  # fmt: skip
    path = unfolded(tmp_path / "x", {f"{k}.{e}": encoded(picture(1, size=(16, 16)), k) for k, e in ends.items()})
    stream = open_stream(DataConfig(path=path), None, CPU)
    assert len(stream) == len(ends) and stream.batch(RNG, 0, range(40)).sample.shape == (40, 3, 16, 16)


def test_what_could_start_a_program_is_never_opened(monkeypatch):
    import subprocess

    started = []

    def refuse(*arguments, **options):
        started.append(arguments)
        raise OSError("a program would have been started")

    for name in ("Popen", "run", "check_call", "call"):
        monkeypatch.setattr(subprocess, name, refuse)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    for name in ("0.png", "0.eps", "0"):
        with pytest.raises(DistillkitError, match=name):
            decode(eps, name)
    assert not started and not {"EPS", "PS", "WMF", "ICO", "ICNS"} & set(formats()) and not {".eps", ".ps"} & suffixes()


def deep(values, kind="PNG"):
    return encoded(Image.fromarray(np.asarray(values, dtype=np.uint16)), kind)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind):
    pixels = decode(deep([[0, 257, 128], [65535, 32768, 65535 - 257]], kind), "x")
    assert pixels[:, :, 0].tolist() == [[0, 1, 0], [255, 128, 254]]


def test_sixteen_bits_are_said(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    path = unfolded(tmp_path / "x", {"a.png": deep(ramp)})
    reader = ImageReader(DataConfig(path=path))
    assert "16 bits" in reader.summary and len(np.unique(reader.pixels(0))) == 64


def test_colours_of_sixteen_bits_keep_their_upper_eight():
    rows = b"".join(b"\0" + b"".join(struct.pack(">HHH", 65535, 40000, 300) for _ in range(2)) for _ in range(2))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(decode(data, "x")[0, 0].astype(int) - [255, 156, 1]).max() <= 1


@pytest.mark.parametrize("kind", ["F", "I"])
def test_numbers_of_unknown_range_are_refused(kind):
    with pytest.raises(DistillkitError, match="convert it"):
        decode(encoded(Image.new(kind, (4, 4)), "TIFF"), "x.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation, tmp_path):
    image = Image.new("RGB", (48, 32))
    image.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    (tmp_path / "x").mkdir()
    image.save(tmp_path / "x" / "1.png", kind, exif=exif, **options)
    reader = ImageReader(DataConfig(path=str(tmp_path / "x")))
    height, width = (32, 48) if orientation < 5 else (48, 32)
    assert reader.shape == (3, height, width), "the size before decoding is that of the upright image"
    pixels = reader.pixels(0)[:, :, 0]
    # Row and column of the white corner, by the standard's meaning of the number.
    down, right = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    assert pixels[-8 if down else 8, -8 if right else 8] > 200 and (pixels > 128).sum() == pytest.approx(256, abs=20)
    assert ("EXIF" in reader.summary) == (orientation > 1)


def transparent(mode="RGBA"):
    """Red that cannot be seen on the left, grey on the right."""
    pixels = np.full((8, 8, 4), (200, 200, 200, 255), np.uint8)
    pixels[:, :4] = (255, 0, 0, 0)
    image = Image.fromarray(pixels)
    if mode == "P":
        palette = Image.fromarray(np.repeat(np.repeat([[0] * 4 + [1] * 4], 8, 0), 1, 1).astype(np.uint8), "P")
        palette.putpalette([255, 0, 0, 200, 200, 200])
        palette.info["transparency"] = 0
        return palette
    if mode == "tRNS":
        image = image.convert("RGB")
        image.info["transparency"] = (255, 0, 0)
        return image
    if mode == "deep":
        values = np.full((8, 8), 200 * 257, np.uint16)
        values[:, :4] = 7
        image = Image.fromarray(values)
        image.info["transparency"] = 7
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "tRNS", "deep"])
def test_transparent_images_need_a_background(mode, tmp_path):
    image = transparent(mode)
    data = encoded(image) if mode in ("RGBA", "LA") else _saved(image, tmp_path)
    path = unfolded(tmp_path / "x", {"a.png": encoded(picture(1)), "b.png": data})
    with pytest.raises(UsageError, match=r"b\.png.*--data-background"):
        ImageReader(DataConfig(path=path))
    for background, value in (("white", 255), ("#102030", None)):
        reader = ImageReader(DataConfig(path=path, background=background))
        left = reader.pixels(1)[0, 0].tolist()
        assert left == ([value] * 3 if value else [16, 32, 48]) and reader.pixels(1)[0, 7].tolist() == [200] * 3
        assert background in reader.summary


def _saved(image, tmp_path):
    image.save(tmp_path / "t.png", transparency=image.info["transparency"])
    return (tmp_path / "t.png").read_bytes()


def test_opaque_alpha_is_dropped_and_said(tmp_path):
    path = unfolded(tmp_path / "x", {"a.png": encoded(picture(1, mode="RGBA"))})
    reader = ImageReader(DataConfig(path=path))
    assert np.array_equal(reader.pixels(0), np.asarray(picture(1))) and "opaque" in reader.summary


def test_grey_over_grey_stays_grey_and_over_a_colour_does_not(tmp_path):
    path = unfolded(tmp_path / "x", {"a.png": encoded(transparent("LA"))})
    assert ImageReader(DataConfig(path=path, background="black")).shape == (1, 8, 8)
    red = ImageReader(DataConfig(path=path, background="red"))
    assert red.shape == (3, 8, 8) and red.pixels(0)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("order", [("L", "RGB"), ("RGB", "L")])
def test_grey_and_colours_are_mixed_in_any_order(order, tmp_path):
    path = unfolded(tmp_path / "x", {f"{k}.png": encoded(picture(k, mode=m)) for k, m in enumerate(order)})
    reader = ImageReader(DataConfig(path=path))
    assert reader.shape == (3, 8, 8) and "1 of them grey" in reader.summary
    assert ImageReader(DataConfig(path=path, grey=True)).shape == (1, 8, 8)


def test_colours_and_a_grey_teacher_get_the_advice_that_helps(tmp_path):
    contents = {f"{k}/a.png": encoded(picture(1)) for k in range(2)}
    path, grey = unfolded(tmp_path / "x", contents), linear_teacher((1, 8, 8))
    with pytest.raises(UsageError) as raised:
        open_stream(DataConfig(path=path), grey, CPU)
    assert "--data-grey" in str(raised.value) and "--data-resolution" not in str(raised.value)
    assert open_stream(DataConfig(path=path, grey=True), grey, CPU).batch(RNG, 0, range(3)).sample.shape[1] == 1
    with pytest.raises(UsageError, match=r"--data-resolution 16 and --data-grey"):
        open_stream(DataConfig(path=path), linear_teacher((1, 16, 16)), CPU)


def test_grey_images_serve_a_teacher_of_colours(tmp_path):
    path = unfolded(tmp_path / "x", {f"{k}/a.png": encoded(picture(1, mode="L")) for k in range(2)})
    stream = open_stream(DataConfig(path=path), linear_teacher(), CPU)
    sample = stream.batch(RNG, 0, range(2)).sample
    assert sample.shape == (2, 3, 8, 8) and torch.equal(sample[:, 0], sample[:, 2]) and "grey" in stream.summary


def test_a_coloured_image_whose_header_was_not_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.data.survey.MOST_HEADERS", 1)
    path = unfolded(tmp_path / "x", {"a.png": encoded(picture(1, mode="L")), "b.png": encoded(picture(2))})
    reader = ImageReader(DataConfig(path=path))
    assert "headers of 1" in reader.summary
    with pytest.raises(DistillkitError, match=r"b\.png.*--data-grey"):
        reader.pixels(1)


def test_of_several_pictures_the_first_is_used_and_said(tmp_path):
    (tmp_path / "x").mkdir()
    first, second = picture(1, mode="L"), picture(2, mode="L")
    first.save(tmp_path / "x" / "a.gif", save_all=True, append_images=[second], duration=50)
    first.save(tmp_path / "x" / "b.tif", save_all=True, append_images=[second])
    reader = ImageReader(DataConfig(path=str(tmp_path / "x")))
    assert "of 2 with several pictures the first" in reader.summary
    assert all(np.array_equal(reader.pixels(k)[:, :, 0], np.asarray(first)) for k in range(2))


def test_pixels_are_bounded_before_decoding_by_an_option(tmp_path):
    for data in (huge_png(), huge_png(9000, 9000)):
        with pytest.raises(DistillkitError, match=r"x\.png.*--data-max-pixels"):
            decode(data, "x.png")
    small = encoded(picture(1, size=(20, 20)))
    with pytest.raises(DistillkitError, match="20 x 20"):
        Decoder(max_pixels=399)(small, "x.png")
    assert Decoder(max_pixels=400)(small, "x.png").shape == (20, 20, 3) and MOST_PIXELS < 2**27


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"", "empty"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"\n<!DOCTYPE HTML>", "HTML")],
)
def test_what_stands_in_the_place_of_an_image_is_named(data, what):
    with pytest.raises(DistillkitError, match=rf"a\.png.*{what}"):
        decode(data, "a.png")


def lying_tiff():
    """16 x 16 pixels in one tile of 40,000 x 40,000."""
    tile = zlib.compress(bytes(100))
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, 40000), (323, 40000)]
    offset = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in [*tags, (324, offset), (325, len(tile))])
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 2) + entries + struct.pack("<I", 0) + tile


def test_a_tile_that_is_larger_than_its_image_is_refused():
    with pytest.raises(DistillkitError, match="40,000 x 40,000"):
        decode(lying_tiff(), "x.tif")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "BMP", "PPM", "QOI"])
def test_damage_is_always_one_message(kind):
    data = encoded(picture(1, size=(24, 24)), kind)
    rng = np.random.default_rng(0)
    for trial in range(40):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 1 + trial % 4):
            damaged[place] = rng.integers(0, 256)
        cut = bytes(damaged[: rng.integers(0, len(data))] if trial % 3 == 0 else damaged)
        try:
            assert decode(cut, "x.bin", background="white").shape[2] in (1, 3)
            Decoder().header(cut, "x.bin")
        except DistillkitError as error:
            assert "x.bin" in str(error) and "\n" not in str(error) and "0x" not in str(error)
