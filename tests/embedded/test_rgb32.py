"""The embedded extractor of colour images: what it takes, what its features depend on, and the tool that made it."""

import sys

import pytest
import torch
from safetensors import safe_open

from distillkit import DistillkitError
from distillkit.embedded import assets
from distillkit.embedded.rgb32 import extractor as rgb32
from distillkit.embedded.rgb32.classifier import Rgb32CNN
from distillkit.registry import registry
from tools import train_rgb_extractor as tool


@pytest.fixture
def untrained() -> rgb32.Rgb32Features:
    torch.manual_seed(0)
    return rgb32.Rgb32Features(Rgb32CNN(), 2.0, "0" * 64)


def pictures(count: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 8, 8), (3, 50, 40)])
def test_images_of_any_size_have_features_that_do_not_depend_on_the_batch(untrained, shape):
    images = pictures(4, shape)
    features = untrained(images)
    assert features.shape == (4, untrained.spec.dim) and features.dtype == torch.float32
    torch.testing.assert_close(features[:1], untrained(images[:1]), rtol=1e-4, atol=1e-5)
    assert untrained.probabilities(images).sum(1) == pytest.approx(1)


def test_images_of_the_networks_size_are_not_resized_and_larger_ones_are_averaged():
    images = pictures(2, (3, 32, 32))
    assert torch.equal(rgb32.prepared(images), images.float() / 127.5 - 1)
    checks = torch.zeros(1, 3, 64, 64)
    checks[..., ::2, ::2] = checks[..., 1::2, 1::2] = 255
    assert rgb32.prepared(checks)[..., 2:-2, 2:-2].abs().max() < 0.02, "aliased"


def test_other_channels_are_refused(untrained):
    with pytest.raises(DistillkitError, match=r"rgb32cnn.*\(4, 8, 8\)"):
        untrained(torch.zeros(2, 4, 8, 8, dtype=torch.uint8))


def test_it_is_offered_as_distillkits_own():
    assert registry().find("extractors", "rgb32cnn").package == "distillkit"


def test_the_tool_trains_and_writes_what_the_extractor_reads(tmp_path, monkeypatch, capsys):
    """On images of one colour a class, with tiny batches."""
    labels = torch.arange(24) % 2
    colours = torch.tensor([[250, 20, 20], [20, 20, 250]], dtype=torch.uint8)
    images = colours[labels][:, :, None, None].expand(-1, -1, 32, 32).contiguous()
    monkeypatch.setattr(tool, "BATCH", 8)
    monkeypatch.setattr(tool, "PEAK_LR", 0.02)
    monkeypatch.setattr(tool, "read_archive", lambda path: (images, labels))
    data, output = tmp_path / "train.zip", tmp_path / rgb32.WEIGHTS
    data.write_bytes(b"")
    arguments = ["--data", data, "--test", data, "--output", output, "--device", "cpu", "--epochs", "5"]
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    tool.main()
    assert "test accuracy 1.0000" in capsys.readouterr().out
    with safe_open(output, "pt") as file:
        assert '"test_accuracy": 1.0' in file.metadata()["card"]
    monkeypatch.setattr(rgb32, "asset_path", lambda name: output)
    monkeypatch.setattr(rgb32, "asset_hashes", lambda: {rgb32.WEIGHTS: "0" * 64})
    features = rgb32.rgb32_features.__wrapped__()(images)
    assert torch.cov(features.double().T).trace().item() == pytest.approx(1, rel=0.02)


@pytest.mark.skipif(rgb32.WEIGHTS not in assets.asset_hashes(), reason="weights are not in this tree")
def test_the_shipped_features_tell_pictures_apart():
    extractor = rgb32.rgb32_features()
    with safe_open(assets.asset_path(rgb32.WEIGHTS), "pt") as file:
        assert file.metadata()["card"]
    ramp = torch.linspace(0, 255, 32)
    sky = torch.stack([ramp / 2, ramp, 255 - ramp / 4])[:, :, None].expand(3, 32, 32)
    stripes = torch.zeros(3, 32, 32)
    stripes[:, :, ::4] = 255
    images = torch.stack([sky, sky.flip(2), stripes, stripes.roll(1, 2), 255 - sky]).to(torch.uint8)
    distances = torch.cdist(extractor(images), extractor(images))
    assert distances[0, 1] < 1e-3, "a picture and its equal mirror image"
    assert distances[2, 3] < distances[0, 2] and distances[0, 4] > 0.05
    assert distances[0, 2] > 0.2
