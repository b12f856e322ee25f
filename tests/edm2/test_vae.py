"""Latents as EDM2 has them: standardised codes of pixels in [0, 1], from an autoencoder that is read when needed."""

import pytest
import torch

from distillkit import DistillkitError, UsageError
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.edm2.vae import MEANS, STDS, StabilityVAE
from distillkit.registry import registry
from tests.models import pipelines


@pytest.fixture
def autoencoder(tmp_path):
    """(diffusers' own, a folder of it alone, the codec that reads that)"""
    pipelines.quiet()
    torch.manual_seed(0)
    model = pipelines.vae().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "vae-alone")
    return model, tmp_path / "vae-alone", codec_of(tmp_path / "vae-alone")


def codec_of(folder):
    return StabilityVAE(parts=PipelineParts(source=str(folder)), factor=2)


@torch.no_grad()
def test_latents_and_images_are_edm2_s(autoencoder):
    model, _, codec = autoencoder
    images = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    code = model.encode(images.float() / 255).latent_dist
    scale = 0.5 / torch.tensor(STDS).view(1, 4, 1, 1)
    bias = -torch.tensor(MEANS).view(1, 4, 1, 1) * scale
    mean, deviation = codec.distribution(images)
    torch.testing.assert_close(mean, code.mean * scale + bias)
    torch.testing.assert_close(deviation, code.std * scale)
    latents = 0.5 * torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    decoded = model.decode((latents - bias) / scale).sample
    expected = decoded.clamp(0, 1).mul(255).to(torch.uint8)
    assert (codec.decode(latents).int() - expected.int()).abs().max() <= 1  # a value that lies on a whole number
    assert (codec.decode(latents) == expected).float().mean() > 0.999
    assert expected.float().std() > 20
    torch.testing.assert_close(codec.images(latents), 2 * decoded - 1, rtol=1e-4, atol=1e-4)


def test_encoding_what_was_decoded_comes_back(autoencoder):
    """The affine and the pixels' range are inverses of each other, whatever the autoencoder loses."""

    class Lossless:
        """The first three channels of a code are the pixels' means."""

        def encode(self, x):
            mean = torch.nn.functional.avg_pool2d(x, 2)
            mean = torch.cat([mean, mean[:, :1]], dim=1)
            return type("Output", (), {"latent_dist": type("D", (), {"mean": mean, "std": torch.ones_like(mean)})})

        def decode(self, z, return_dict):
            return (z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3),)

        def to(self, device): ...

    codec = autoencoder[2]
    codec._model = Lossless()
    images = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    images = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    latents = codec.encode(images)
    assert (codec.decode(latents).int() - images.int()).abs().max() <= 1
    torch.testing.assert_close(codec.encode(codec.decode(latents)), latents, rtol=0, atol=0.51 / 255)


def test_gradients_pass_through_the_decoder(autoencoder):
    codec = autoencoder[2]
    latents = torch.zeros(1, 4, 4, 4, requires_grad=True)
    codec.images(latents).square().mean().backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0


def test_its_weights_are_read_when_they_are_needed_and_known_by_hash(autoencoder):
    _, folder, codec = autoencoder
    assert codec.weight_bytes == 0 and codec.decoded_shape((4, 8, 8)) == (3, 16, 16)
    hashed = codec.hashed()
    assert sorted(hashed.parts.sha256) == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    described = registry().describe("codecs", hashed)
    assert described["kind"] == "distillkit:StabilityVAE"
    again = registry().build("codecs", described)
    assert again == hashed and again.decode(torch.zeros(1, 4, 4, 4)).shape == (1, 3, 8, 8) and again.weight_bytes > 0
    weights = folder / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DistillkitError, match=f"{weights} is another file"):
        registry().build("codecs", described).decode(torch.zeros(1, 4, 4, 4))


def test_a_pipeline_s_autoencoder_will_do_and_a_folder_without_one_is_named(autoencoder, tmp_path):
    model, _, codec = autoencoder
    model.save_pretrained(tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "config.json").write_text("{}")
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(codec_of(tmp_path / "pipeline").decode(latents), codec.decode(latents))
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="other has no vae, which this model needs"):
        codec_of(tmp_path / "other").decode(latents)
    with pytest.raises(UsageError, match="/nowhere"):
        codec_of("/nowhere").decode(latents)


def test_a_repository_of_the_hub_is_asked_for_the_files_where_they_lie(autoencoder, monkeypatch):
    _, folder, codec = autoencoder
    asked = []

    def snapshot(repository, *, revision, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *a, **k: ["config.json", WEIGHTS, "other.bin"])
    default = StabilityVAE(factor=2)
    assert default.parts.source == "hf:stabilityai/sd-vae-ft-mse"
    assert default.decode(torch.zeros(1, 4, 4, 4)).shape == (1, 3, 8, 8)
    repository, patterns = asked[0]
    assert repository == "stabilityai/sd-vae-ft-mse" and {"config.json", WEIGHTS} <= set(patterns)
    asked.clear()
    parts = PipelineParts(source=default.parts.source, sha256=codec.hashed().parts.sha256)
    recorded = StabilityVAE(factor=2, parts=parts)
    assert recorded.decode(torch.zeros(1, 4, 4, 4)).shape == (1, 3, 8, 8)
    assert {"config.json", WEIGHTS, f"vae/{WEIGHTS}"} <= set(asked[0][1])


WEIGHTS = "diffusion_pytorch_model.safetensors"
