"""Extractors: clean-fid's features to 1e-5, the Inception file checked before it is loaded, others by their hash."""

import hashlib
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillkit import DistillkitError, UsageError
from distillkit.embedded.rgb32.extractor import prepared, rgb32_features
from distillkit.evaluation.extractor import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    DINOv2,
    Inception,
    ModuleExtractor,
    torchscript_extractor,
)
from distillkit.evaluation.presets import load_measure
from distillkit.evaluation.protocol import INCEPTION_2015
from distillkit.files import sha256


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 32, 16, stride=16)
        self.out = torch.nn.Linear(32, 2048)

    def forward(self, x):
        return self.out(torch.relu(self.conv(x)).mean([2, 3]))


class FakeInception(torch.nn.Module):
    """A network of random weights with the interface of the published TorchScript file."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x, return_features: bool = False):
        x = torch.nn.functional.interpolate(x, size=[299, 299], mode="bilinear", align_corners=False)
        return self.layers((x - 128) / 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(FakeInception()).save(str(path / INCEPTION_FILE))
    return path


@pytest.fixture(scope="module")
def clean(folder):
    return Inception(folder, "clean", weights_sha256=sha256(folder / INCEPTION_FILE))


def clean_fid_features(folder, images):
    """clean-fid's own path: its resizer, its wrapper, image by image."""
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = InceptionV3W(str(folder), download=False, resize_inside=False)
    batch = [torch.from_numpy(resize(image).transpose(2, 0, 1))[None] for image in images]
    with torch.no_grad():
        return torch.cat([network(one) for one in batch])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(8, 80), width=st.integers(8, 80), seed=st.integers(0, 9))
def test_clean_features_equal_clean_fids(folder, clean, height, width, seed):
    images = np.random.default_rng(seed).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    with torch.no_grad():
        ours = clean(torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(ours, clean_fid_features(folder, images), rtol=1e-5, atol=1e-5)


def test_in_graph_mode_hands_images_to_the_network_as_they_are(folder):
    extractor = Inception(folder, "in-graph", weights_sha256=sha256(folder / INCEPTION_FILE))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = torch.jit.load(folder / INCEPTION_FILE)(pixels.float())
        torch.testing.assert_close(extractor(pixels), expected)
        grey = pixels[:, :1]
        torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_another_file_under_inceptions_name_is_not_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("a file of the wrong hash was loaded"))
    with pytest.raises(DistillkitError, match="It was not loaded") as error:
        Inception(folder, "clean")
    assert INCEPTION_SHA256 in str(error.value) and INCEPTION_SHA256 in INCEPTION_2015
    with pytest.raises(DistillkitError, match="protocols fetch") as error:
        Inception(tmp_path, "clean")
    assert str(tmp_path / INCEPTION_FILE) in str(error.value)


def test_any_module_and_any_torchscript_file_is_an_extractor(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))
    extractor = ModuleExtractor(network, "mine/linear", (3, 8, 8))
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert extractor(pixels).shape == (4, 5) and extractor.spec.dim == 5
    normalised = torch.nn.Sequential(*network, torch.nn.BatchNorm1d(5))  # counts batches in a scalar
    assert len(ModuleExtractor(normalised, "mine/normalised", (3, 8, 8)).spec.weights_sha256) == 64
    with torch.no_grad():
        network[1].bias += 1
    assert ModuleExtractor(network, "mine/linear", (3, 8, 8)).spec.weights_sha256 != extractor.spec.weights_sha256
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(path))
    scripted = torchscript_extractor(path, (3, 8, 8))
    assert scripted.spec.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    torch.testing.assert_close(scripted(pixels), network(pixels.float()))
    with pytest.raises(DistillkitError, match="does not take images"):
        torchscript_extractor(path, (3, 16, 16))
    path.write_bytes(b"no TorchScript")
    with pytest.raises(UsageError, match="not a TorchScript file"):
        torchscript_extractor(path, (3, 8, 8))


def test_dinov2_resizes_normalises_and_is_known_by_its_weights():
    extractor = DINOv2("vit_small_patch14_dinov2", pretrained=False)
    assert extractor.spec.dim == 384 and extractor.spec.id == "vit_small_patch14_dinov2/cls"
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert extractor(pixels).shape == (1, 384) and extractor(pixels).isfinite().all()


@pytest.mark.parametrize(("protocol", "metrics"), [("digits8", ("fd", "is")), ("shapes", ("fd",))])
def test_features_and_probabilities_that_are_measured_are_of_one_pass(protocol, metrics):
    measure = load_measure(protocol)
    extractor, calls = measure.extractor, []
    shape = (1, 8, 8) if protocol == "digits8" else (3, 32, 32)
    pixels = torch.randint(0, 256, (12, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = next(layer for layer in extractor.network.modules() if isinstance(layer, torch.nn.Conv2d))
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    try:
        kept = measure.rows(pixels, metrics)
    finally:
        hook.remove()
    assert len(calls) == 1 and kept.shape == (12, measure.row(metrics))
    assert torch.equal(kept, torch.cat([extractor(pixels), extractor.probabilities(pixels)], dim=1))


def test_features_and_probabilities_of_colour_images_are_of_one_pass():
    extractor, calls = rgb32_features(), []
    pixels = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hook = extractor.network.body.register_forward_hook(lambda *_: calls.append(1))
    try:
        features, probabilities = extractor.with_probabilities(pixels)
    finally:
        hook.remove()
    assert len(calls) == 1 and torch.equal(features, extractor(pixels))
    assert torch.equal(probabilities, extractor.network(prepared(pixels)).softmax(1))
