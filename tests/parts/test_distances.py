"""Distances by name, and LPIPS."""

import pytest
import torch
from safetensors.torch import save_file

from distillkit import Codec, DistillkitError, PipelineParts, Recipe, StudentGenerator, UsageError
from distillkit.diffusion import l1, l2, pseudo_huber
from distillkit.parts import LPIPS, NamedDistance, Regression, distance_for
from tests.parts.toys import step_of, toy_teacher


@pytest.mark.parametrize(("name", "function"), [("l1", l1), ("l2", l2), ("pseudo-huber", pseudo_huber)])
def test_names(name, function):
    a, b = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    distance = NamedDistance(name)
    assert torch.equal(distance(a, b), function(a, b)) and not distance.remark


def test_lpips_is_for_images_of_some_size():
    teacher = toy_teacher()
    assert distance_for(teacher).name == "pseudo-huber"
    large = teacher.spec.model_copy(update={"shape": (3, 32, 32)})
    teacher.spec = large
    assert distance_for(teacher).name == "lpips" and "LPIPS" in distance_for(teacher).remark
    for shape in ("points", "video"):
        assert distance_for(toy_teacher(shape=shape)).name == "pseudo-huber"
        with pytest.raises(UsageError, match="lpips"):
            distance_for(toy_teacher(shape=shape), "lpips")


@pytest.fixture(scope="module")
def backbone():
    import torchvision

    torch.manual_seed(0)
    state = torchvision.models.vgg16(weights=None).features.state_dict()
    return {f"features.{name}": value for name, value in state.items()}


def test_lpips_takes_its_backbone_and_passes_gradients(backbone):
    distance = LPIPS(backbone)
    for name, parameter in distance.net.net.named_parameters():
        _, layer, kind = name.split(".")
        assert torch.equal(parameter, backbone[f"features.{layer}.{kind}"])
    a = torch.rand(2, 1, 8, 8, requires_grad=True)
    b = torch.stack([torch.rand(1, 8, 8), a[1].detach()])
    value = distance(a, b)
    assert value.shape == (2,) and value[0] > 0 and value[1].abs() < 1e-6
    value.sum().backward()
    assert a.grad[0].abs().sum() > 0
    assert not any(p.requires_grad for p in distance.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(a, b), value), "float32 inside autocast too"


@pytest.fixture
def latent_teacher(tmp_path):
    """Latents (4, 16, 16) of a small autoencoder, which decodes them to images (3, 32, 32)."""
    from diffusers import AutoencoderKL as Autoencoder

    from distillkit.models.diffusers.vae import AutoencoderKL

    torch.manual_seed(0)
    Autoencoder(
        block_out_channels=[8, 8], norm_num_groups=4, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=3,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    teacher = toy_teacher()
    teacher.spec = teacher.spec.model_copy(update={"shape": (3, 16, 16)})
    teacher.codec = AutoencoderKL(parts=PipelineParts(source=str(tmp_path)), factor=2, latent_channels=3)
    return teacher


def test_lpips_of_latents_is_that_of_the_decoded_images(latent_teacher, backbone, tmp_path, monkeypatch):
    from distillkit.models.diffusers import vae

    save_file(backbone, tmp_path / "vgg.safetensors")
    monkeypatch.setenv("DISTILLKIT_VGG16", str(tmp_path / "vgg.safetensors"))
    monkeypatch.setattr(vae, "WITH_GRADIENT", 2 * 32 * 32)  # two images a pass
    codec, distance = latent_teacher.codec, distance_for(latent_teacher)
    assert (
        distance.name == "lpips" and "decode" in distance.detail and distance_for(latent_teacher, "l2").decode is None
    )
    made, wanted = torch.randn(3, 3, 16, 16, requires_grad=True), torch.randn(3, 3, 16, 16)
    passes = []
    model = codec._loaded()
    decode = model.decode
    monkeypatch.setattr(
        model, "decode", lambda z, **how: passes.append((len(z), torch.is_grad_enabled())) or decode(z, **how)
    )
    value = distance(made, wanted)
    assert [size for size, _ in passes] == [2, 1, 3], "every side once"
    (gradient,) = torch.autograd.grad(value.sum(), made)
    assert [size for size, _ in passes[3:]] == [1, 2], "the student's side anew, on the way back"

    images = model.decode(made / codec.scaling, return_dict=False)[0]
    direct = LPIPS(backbone)(images, model.decode(wanted / codec.scaling, return_dict=False)[0].detach())
    torch.testing.assert_close(value, direct)
    torch.testing.assert_close(gradient, torch.autograd.grad(direct.sum(), made)[0], rtol=1e-3, atol=1e-6)
    assert distance.frozen_bytes > 50e6 and codec.weight_bytes > 0


def test_lpips_is_no_distance_of_latents_without_gradients(latent_teacher):
    class Sealed(Codec):
        """Decodes to uint8 alone."""

        @property
        def content(self):
            return "images"

        def decode(self, samples):
            return samples

        def encode(self, data):
            return data

    latent_teacher.codec = Sealed()
    assert distance_for(latent_teacher).name == "pseudo-huber"
    with pytest.raises(UsageError, match="gradients"):
        distance_for(latent_teacher, "lpips")


def test_a_download_that_does_not_match_its_hash_is_refused(backbone, tmp_path, monkeypatch):
    import hashlib

    import huggingface_hub

    save_file(backbone, tmp_path / "vgg")
    digest = hashlib.sha256((tmp_path / "vgg").read_bytes()).hexdigest()
    monkeypatch.delenv("DISTILLKIT_VGG16", raising=False)
    for name, fits in ((digest, True), ("0" * 64, False)):
        (tmp_path / "vgg").replace(tmp_path / name)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *a, **k: None)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(tmp_path / name))  # noqa: B023
        if fits:
            assert isinstance(LPIPS.pretrained(), LPIPS)
        else:
            with pytest.raises(DistillkitError, match="sha256"):
                LPIPS.pretrained()
        (tmp_path / name).replace(tmp_path / "vgg")


def test_an_objective_loads_lpips_before_the_run_or_fails_there(backbone, tmp_path, monkeypatch):
    save_file(backbone, tmp_path / "vgg.safetensors")
    monkeypatch.setenv("DISTILLKIT_VGG16", str(tmp_path / "vgg.safetensors"))
    Regression(NamedDistance("lpips")).prepare()
    monkeypatch.setenv("DISTILLKIT_VGG16", str(tmp_path / "absent.safetensors"))
    with pytest.raises(DistillkitError, match="DISTILLKIT_VGG16"):
        Regression(NamedDistance("lpips")).prepare()


def test_without_a_network_lpips_is_refused_at_once(monkeypatch, tmp_path):
    """The hub's client is asked once, and not left to its retries."""
    import huggingface_hub

    asked = []

    def ask(*arguments, **options):
        asked.append(options)
        raise ConnectionError("no network")

    monkeypatch.delenv("DISTILLKIT_VGG16", raising=False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("left to the client"))
    with pytest.raises(DistillkitError, match=r"no network.*--distance pseudo-huber.*DISTILLKIT_VGG16"):
        LPIPS.pretrained()
    assert len(asked) == 1 and asked[0]["timeout"] <= 30


def test_the_regression_compares_the_students_samples_from_the_pairs_noise():
    teacher = toy_teacher("flow", "points")
    recipe = Recipe(StudentGenerator.from_teacher(teacher), [Regression(NamedDistance("l2"), weight=2.0)])
    step = step_of(recipe, teacher)
    made = recipe.student(step.pairs.noise, step.pairs.condition)
    torch.testing.assert_close(recipe.objectives[0](step), (made - step.pairs.sample).square().mean())
    assert step.logged["std_to_teacher"] == pytest.approx((made.std() / step.pairs.sample.std()).item())
