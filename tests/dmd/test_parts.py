"""DMD's parts beyond the golden: presets, switches, LPIPS."""

import pytest
import torch
from safetensors.torch import save_file

from distillkit import DistillkitError
from distillkit_dmd.method import DMD, DMDConfig
from distillkit_dmd.perceptual import LPIPS


def test_every_catalogued_teacher_has_a_valid_preset():
    from distillkit.runs.config import resolve
    from distillkit.models.edm.catalog import ALIASES, CATALOG

    used = set()
    for name in (*CATALOG, *ALIASES):
        config, preset = resolve(DMD, options={"teacher": name})
        assert preset is not None and preset.source
        assert all(config.settings[key] == value for key, value in preset.settings.items())
        used.add(preset.name)
    assert used == {preset.name for preset in DMD.presets}, "every preset is for some teacher"
    assert DMD.preset_for("somebody-elses") is None


@pytest.mark.parametrize(
    ("teacher", "weight", "pairs", "steps", "lr", "batch"),
    [
        ("edm-cifar10-cond", 0.25, 100_000, 18, 5e-5, 392),
        ("edm-cifar10-uncond-ve", 0.5, 500_000, 18, 5e-5, 392),
        ("edm-imagenet64", 0.25, 25_000, 256, 2e-6, 336),
    ],
)
def test_presets_are_the_papers(teacher, weight, pairs, steps, lr, batch):
    from distillkit.runs.config import resolve

    config, _ = resolve(DMD, options={"teacher": teacher})
    assert config.settings["regression_weight"] == weight and config.settings["distance"] == "lpips"
    assert (config.pairs.count, config.pairs.steps) == (pairs, steps)
    assert (config.training.lr, config.training.batch, config.training.weight_decay) == (lr, batch, 0.01)
    assert config.training.steps == {392: 300_000, 336: 350_000}[batch]


@pytest.mark.parametrize(
    ("settings", "objectives", "learners"),
    [
        ({}, ["distribution_matching", "regression"], ["fake_score"]),
        ({"kl_weight": 0}, ["regression"], []),
        ({"regression_weight": 0}, ["distribution_matching"], ["fake_score"]),
    ],
)
def test_a_term_that_is_off_costs_nothing(tiny_teacher, settings, objectives, learners):
    recipe = DMD().recipe(tiny_teacher, DMDConfig(distance="l2", **settings))
    assert [o.name for o in recipe.objectives] == objectives
    assert [learner.name for learner in recipe.learners] == learners


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
    a, b = torch.rand(2, 1, 8, 8, requires_grad=True), torch.rand(2, 1, 8, 8)
    value = distance(a, b)
    assert value.shape == (2,) and (value > 0).all()
    assert distance(b, b).abs().max() < 1e-6
    value.sum().backward()
    assert a.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_a_download_that_does_not_match_its_hash_is_refused(backbone, tmp_path, monkeypatch):
    import hashlib

    import huggingface_hub

    save_file(backbone, tmp_path / "vgg")
    digest = hashlib.sha256((tmp_path / "vgg").read_bytes()).hexdigest()
    monkeypatch.delenv("DISTILLKIT_VGG16", raising=False)
    for name, fits in ((digest, True), ("0" * 64, False)):
        (tmp_path / "vgg").replace(tmp_path / name)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(tmp_path / name))  # noqa: B023
        if fits:
            assert isinstance(LPIPS.pretrained(), LPIPS)
        else:
            with pytest.raises(DistillkitError, match="does not match its sha256"):
                LPIPS.pretrained()
        (tmp_path / name).replace(tmp_path / "vgg")


def test_lpips_weights_come_from_a_named_file_or_a_clear_error(backbone, tmp_path, monkeypatch):
    save_file(backbone, tmp_path / "vgg.safetensors")
    monkeypatch.setenv("DISTILLKIT_VGG16", str(tmp_path / "vgg.safetensors"))
    assert isinstance(LPIPS.pretrained(), LPIPS)
    monkeypatch.setenv("DISTILLKIT_VGG16", str(tmp_path / "absent.safetensors"))
    with pytest.raises(DistillkitError, match=r"DISTILLKIT_VGG16.*--distance pseudo-huber"):
        LPIPS.pretrained()
