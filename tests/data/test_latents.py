"""Latents of images: the same numbers from a store and from the autoencoder; made once, mirrors among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor

from distillkit import DistillkitError, SampleRNG, SourceJob
from distillkit.data import latents as module
from distillkit.data.config import DataConfig
from distillkit.data.images import ImageSource
from distillkit.data.latents import LatentStore, LatentStream, plan_latents, with_latents
from distillkit.data.stream import ImageStream, open_stream
from tests.data.cached import uses_are_noted
from tests.data.teachers import HalfSize, linear_teacher
from tests.data.test_images import encoded, picture

JOB = SourceJob(torch.device("cpu"))
COUNT = 10


class Slanted(HalfSize):
    """Latents that are not those of the mirrored image mirrored; remembers how many it has made."""

    slope: float = 1.0
    worst: float = -1.0

    _made: list[int] = PrivateAttr(default_factory=list)
    _released: list[bool] = PrivateAttr(default_factory=list)

    def distribution(self, data: Tensor) -> tuple[Tensor, Tensor]:
        mean = self._mean(data)
        return mean, 0.1 + mean.abs() / 10

    def _mean(self, data: Tensor) -> Tensor:
        self._made.append(len(data))
        made = super().encode(data) / 3
        made = made + self.slope * torch.linspace(0, 1, made.shape[-1])
        bad = data.flatten(1).float().mean(1) == self.worst
        return torch.where(bad[:, None, None, None], torch.nan, made)

    def release(self) -> None:
        self._released.append(True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MOST_ROWS", 3)
    (tmp_path / "images").mkdir()
    for k in range(COUNT):
        (tmp_path / "images" / f"{k}.png").write_bytes(encoded(picture(k, (16, 16))))
    return tmp_path / "images"


def stream(folder, codec=None, **config) -> ImageStream:
    teacher = linear_teacher((6, 8, 8), None, codec or Slanted())
    return open_stream(DataConfig(path=str(folder), workers=0, **config), teacher, torch.device("cpu"))


def samples(images, steps=3):
    return torch.cat([images.batch(SampleRNG(1), step, range(16)).sample for step in range(steps)])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_store_gives_what_the_autoencoder_gives(folder, flip, dtype):
    codec = Slanted()
    plain = stream(folder, codec, flip=flip, latents_dtype=dtype)
    stored = with_latents(plain, JOB)
    assert isinstance(stored, LatentStream) and sum(codec._made) == COUNT * (1 + flip) and codec._released
    before = len(codec._made)
    made = samples(stored)
    assert len(codec._made) == before and made.dtype == torch.float32
    assert torch.equal(made, samples(plain)) and len(made.unique(dim=0)) == len(made), "each is drawn anew"
    exact = samples(stream(folder, Slanted(), flip=flip))
    assert torch.equal(made, exact) == (dtype == "fp32") and torch.allclose(made, exact, atol=1e-3)
    again = Slanted()
    assert torch.equal(samples(with_latents(stream(folder, again, flip=flip, latents_dtype=dtype), JOB)), made)
    assert not again._made, "nothing is encoded twice"
    if not flip:
        return
    uses_are_noted("latents", lambda: with_latents(stream(folder, again, flip=flip, latents_dtype=dtype), JOB))


def test_a_store_is_another_one_for_whatever_it_depends_on(folder, tmp_path):
    stores = [
        LatentStore(stream(folder, Slanted(**fields), **config)).folder
        for fields, config in (
            ({}, {}), ({"slope": 2.0}, {}), ({}, {"flip": True}), ({}, {"latents_dtype": "fp16"}),
            ({}, {"resolution": 16}), ({}, {"resolution": 16, "filter": "box"}),
        )
    ]  # fmt: skip
    (folder / "0.png").write_bytes(encoded(picture(99, (16, 16))))
    stores.append(LatentStore(stream(folder)).folder)
    assert len(set(stores)) == len(stores)


def test_what_stops_the_making_costs_a_shard_and_processes_share_it(folder):
    signals = iter([0, 2])
    with pytest.raises(InterruptedError, match="stopped while encoding images"):
        with_latents(stream(folder), replace(JOB, should_stop=lambda: next(signals, 2), interrupted=InterruptedError))
    assert LatentStore(stream(folder)).missing() == COUNT - 2 * 3
    codecs = [Slanted(), Slanted()]
    for rank, codec in enumerate(codecs):
        LatentStore(stream(folder, codec)).make(rank, 2, lambda count: None)
    assert [sum(codec._made) for codec in codecs] == [3, 1], "shards 2 and 3 were left"
    assert LatentStore(stream(folder)).missing() == 0


def test_a_latent_that_is_not_finite_names_its_image(folder):
    means = [torch.tensor(stream(folder).reader.pixels(k)).float().mean().item() for k in range(COUNT)]
    codec = Slanted(worst=means[4])
    for images in (stream(folder, codec), stream(folder, codec, latents="on-the-fly")):
        with pytest.raises(DistillkitError, match=r"4\.png is not finite"):
            samples(with_latents(images, JOB))
    with pytest.raises(DistillkitError, match="not finite"):
        samples(with_latents(stream(folder, Slanted(slope=1e6), latents_dtype="fp16"), JOB))


def test_where_they_are_goes_by_size_and_use_and_is_said(folder, monkeypatch):
    row = 2 * 4 * 6 * 8 * 8

    def planned(free=10**12, draws=None, **config):
        usage = module.shutil._ntuple_diskusage(free, 0, free)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
        return plan_latents(stream(folder, **config), draws)

    assert planned().disk_bytes == COUNT * row and "in fp32, memory-mapped" in planned().summary
    assert planned(flip=True, latents_dtype="fp16").disk_bytes == COUNT * row
    assert planned(free=2 * COUNT * row).stored and not planned(free=2 * COUNT * row - 1).stored
    assert planned(draws=COUNT).stored and "draws 9 images" in planned(draws=COUNT - 1).summary
    assert not planned(latents="on-the-fly").stored
    with pytest.raises(DistillkitError, match="--data-latents on-the-fly"):
        planned(free=COUNT * row - 1, latents="store")
    assert planned().stored
    said = []
    source = ImageSource(linear_teacher((6, 8, 8), None, Slanted()), DataConfig(path=str(folder), workers=0))
    assert "10 to make" in source.plan().summary and source.plan().disk_bytes == COUNT * row
    assert isinstance(source.open(replace(JOB, say=said.append)), LatentStream)
    assert "latents (means and deviations, from which samples are drawn) in fp32" in said[-1]
    assert "to make" not in source.plan().summary
    pixels = ImageSource(linear_teacher((3, 16, 16), None), DataConfig(path=str(folder), workers=0))
    assert isinstance(pixels.open(JOB), ImageStream) and "latents" not in pixels.plan().summary


def test_samples_are_drawn_from_the_distribution(folder):
    for k in range(1, COUNT):
        (folder / f"{k}.png").unlink()
    images = with_latents(stream(folder), JOB)
    drawn = torch.cat([images.batch(SampleRNG(3), step, range(64)).sample for step in range(30)])
    mean, deviation = Slanted().distribution(torch.tensor(images.stream.reader.pixels(0)).permute(2, 0, 1)[None])
    assert torch.allclose(drawn.mean(0), mean[0], atol=0.05) and torch.allclose(drawn.std(0), deviation[0], rtol=0.15)
