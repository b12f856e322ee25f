"""Snapshots of EDM2's training become teachers, and the code that they carry is never executed."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distillkit import (
    ClassLabels,
    Condition,
    DistillkitError,
    Pixels,
    Unconditional,
    UsageError,
    build_denoiser,
    load_teacher,
)
from distillkit.models.edm2.catalog import CATALOG
from distillkit.models.edm2.vae import StabilityVAE
from distillkit.models.foreign.records import Refused
from distillkit.models.store.convert import convert
from distillkit.progress import Quiet
from distillkit.registry import registry
from tests.edm2.pickled import Encoder, latents, write_snapshot
from tests.edm2.small import description_of, small
from tests.edm2.test_goldens import close, inputs
from tests.models import pipelines


@pytest.fixture
def reference(golden):
    return golden("edm2_small")


@pytest.fixture
def snapshot(reference, tmp_path):
    """Writes a snapshot of the golden's network; its arguments, or some of them, may be others."""

    def write(encoder=None, changes=None, **options):
        kwargs = {**reference.description["constructor"], "use_fp16": True}
        given = encoder or Encoder("StandardRGBEncoder")
        return write_snapshot(
            tmp_path / "net.pkl", small(reference), {**kwargs, **(changes or {})}, None if given == "none" else given,
            **options,
        )  # fmt: skip

    return write


def latent_snapshot(reference, tmp_path, **changes):
    """Of a network of four channels."""
    kwargs = {**reference.description["constructor"], "img_channels": 4}
    denoiser = build_denoiser(description_of(kwargs))
    return write_snapshot(tmp_path / "net.pkl", denoiser, kwargs, latents(**changes))


def test_a_snapshot_becomes_the_reference_denoiser(reference, snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = snapshot()
    teacher = load_teacher(str(path), Quiet())
    assert b"canary" in path.read_bytes()
    assert (teacher.spec.shape, teacher.conditioner) == ((3, 8, 8), ClassLabels(classes=5, null_label=False))
    assert teacher.codec == Pixels() and teacher.spec.solver_steps == 32
    assert teacher.spec.network["kind"] == "distillkit:EDM2UNet"
    with torch.no_grad():
        close(teacher.denoiser(*inputs(reference)), reference.tensors["denoised"])
        close(teacher.denoiser.log_variance(reference.tensors["sigma"]), reference.tensors["logvar"])
    assert not (tmp_path / "canary").exists(), "the source in the file was executed"


def test_arguments_are_the_file_s(reference, snapshot):
    variants = reference.description["variants"]
    changes = variants["balances"] | variants["other_sigma_data"]
    teacher = load_teacher(str(snapshot(changes=changes)), Quiet())
    arguments = teacher.spec.network["arguments"]
    assert arguments["sigma_data"] == 0.9 and arguments["network"]["attn_balance"] == 0.2
    with torch.no_grad():
        expected = small(reference, **changes)(*inputs(reference))
        close(teacher.denoiser(*inputs(reference)), expected)


def test_an_unconditional_network_has_no_labels(reference, tmp_path):
    kwargs = {**reference.description["constructor"], "label_dim": 0}
    path = write_snapshot(tmp_path / "net.pkl", small(reference, label_dim=0), kwargs, Encoder("StandardRGBEncoder"))
    assert load_teacher(str(path), Quiet()).conditioner == Unconditional()


def test_latents_are_those_of_the_encoder_in_the_file(reference, tmp_path):
    spec = convert(latent_snapshot(reference, tmp_path), tmp_path / "out", name="x")
    # The paper's numbers to the digit, so that the file's codec and the catalogue's are one and the same.
    assert spec.codec == CATALOG["edm2-img512-xs"].spec.codec
    teacher = load_teacher(str(tmp_path / "out"))
    assert teacher.codec == StabilityVAE() and teacher.codec.decoded_shape(teacher.spec.shape) == (3, 64, 64)


def test_what_is_assumed_and_where_the_autoencoder_is_are_said(reference, snapshot, tmp_path):
    said = []
    spec = convert(snapshot("none"), tmp_path / "out", name="x", say=said.append)
    assert spec.codec["kind"] == "distillkit:Pixels"
    assert said == ["no encoder of its samples in the file: taken for pixels"]
    said.clear()
    convert(latent_snapshot(reference, tmp_path), tmp_path / "latent", name="x", say=said.append)
    assert said == ["latents of the autoencoder hf:stabilityai/sd-vae-ft-mse, which is read when it is first needed"]


def test_the_autoencoder_may_lie_in_a_folder(reference, snapshot, tmp_path):
    pipelines.quiet()
    pipelines.vae().save_pretrained(tmp_path / "vae")
    path = latent_snapshot(reference, tmp_path, vae_name="/home/me/vae")
    convert(path, tmp_path / "out", name="x", asked={"vae": str(tmp_path / "vae")})
    codec = load_teacher(str(tmp_path / "out")).codec
    assert codec.means == StabilityVAE().means and codec.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 16, 16)
    assert codec.parts.sha256
    pipelines.vae(latent_channels=3).save_pretrained(tmp_path / "other")
    for vae, fragment in (
        (tmp_path / "other", "3 channels, and the network's samples 4"), ("/nowhere", "no such folder"),
        ("hf:x", "write it as hf:ORG/REPO"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=fragment):
            convert(path, tmp_path / "no", name="x", asked={"vae": str(vae)})
    with pytest.raises(UsageError, match="its samples are pixels"):
        convert(snapshot(), tmp_path / "no", name="x", asked={"vae": "hf:a/b"})
    with pytest.raises(UsageError, match="--set widths: nothing can be set"):
        convert(snapshot(), tmp_path / "no", name="x", asked={"widths": "3"})


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"vae_name": "/home/me/vae"}, "no ORG/REPO of the hub"),
        ({"vae_name": "../x"}, "no ORG/REPO of the hub"),
        ({"vae_name": None}, "no ORG/REPO of the hub"),
        ({"scale": np.zeros(4, np.float32)}, "scale is zero"),
        ({"scale": np.full(4, np.nan, np.float32)}, "scale is not one finite number"),
        ({"bias": np.zeros(3, np.float32)}, "bias is not one finite number for each of the 4 channels"),
        ({"bias": 0.5}, "bias is not one finite number"),
        ({"scale": -np.ones(4, np.float32)}, "stds"),
        ({"bias": np.full(4, 1e30, np.float32)}, "means"),
    ],
)
def test_encoders_that_make_no_sense_are_refused(reference, tmp_path, change, fragment):
    with pytest.raises(Refused, match=fragment):
        convert(latent_snapshot(reference, tmp_path, **change), tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"label_dim": 7}, r"emb_label"),
        ({"channel_mult": [1, 2, 2]}, r"missing: "),
        ({"num_blocks": 2}, r"missing: "),
        ({"schedule": "x"}, r"schedule"),
        ({"in_channels": 7}, r"enc\.8x8_conv\.weight"),
        ({"img_resolution": "large"}, r"incomplete"),
        ({"label_dim": -1}, r"cannot be built"),
        ({"logvar_channels": 10**9}, r"cannot be built"),
        ({"model_channels": 10**9}, r"model_channels"),
        ({"clip_act": {"nested": 1}}, r"clip_act is not a plain value"),
        ({"resample_filter": [1, 1, 1]}, r"3 taps"),
    ],
)
def test_arguments_that_do_not_fit_are_named(snapshot, tmp_path, change, fragment):
    with pytest.raises(DistillkitError, match=fragment):
        convert(snapshot(changes=change), tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


def test_other_encoders_and_another_teacher_are_refused(snapshot, tmp_path):
    with pytest.raises(Refused, match="encoder of class FluxVAEEncoder; known are StandardRGBEncoder"):
        convert(snapshot(Encoder("FluxVAEEncoder")), tmp_path / "out", name="x")
    with pytest.raises(DistillkitError, match=r"is not edm2-img64-s: it makes samples \(3, 8, 8\) of 5 classes"):
        convert(snapshot(), tmp_path / "out", name="x", expected=CATALOG["edm2-img64-s"].spec)


def test_a_one_step_generator_that_was_published_is_a_student(reference, tmp_path):
    """SiD's students of EDM2's networks: another class, no uncertainty, no encoder in the file."""
    kwargs = {**reference.description["constructor"], "img_channels": 4, "force_normalization": True, "use_gan": False}
    inner = {key: value for key, value in kwargs.items() if key not in ("force_normalization", "use_gan")}
    denoiser = build_denoiser(description_of({**inner, "logvar_channels": 0}))
    assert denoiser.log_variance(torch.ones(2)) is None
    with torch.no_grad():
        denoiser.model.out_gain.fill_(1)
    hooked = {"class_name": "EDM_2_Precond_Generator", "half": False, "hook": "_apply_forced_weight_normalization"}
    path = write_snapshot(tmp_path / "sid.pkl", denoiser, kwargs, None, **hooked)
    said = []
    spec = convert(path, tmp_path / "out", name="sid", say=said.append)
    assert spec.codec["kind"] == "distillkit:StabilityVAE" and "taken for latents, as EDM2's are" in said[0]
    asked = 2.5 * torch.randn(2, 4, 8, 8), torch.full((2,), 2.5), Condition(labels=torch.tensor([1, 3]))
    assert torch.equal(load_teacher(str(tmp_path / "out")).denoiser(*asked), denoiser(*asked))
    write_snapshot(path, denoiser, kwargs, None, **{**hooked, "hook": "load_state_dict"})
    with pytest.raises(Refused, match=r"builtins\.getattr"):
        convert(path, tmp_path / "other", name="sid")


@pytest.mark.parametrize("kind", ["own", "released", "inner", "training", "safetensors"])
def test_weights_alone_need_to_be_told_whose_network_they_are_for(reference, snapshot, kind, tmp_path):
    like = convert(snapshot(), tmp_path / "like", name="like")
    released = {name: value.float() for name, value in reference.part("net.").items()}
    path = tmp_path / "weights.bin"
    if kind == "safetensors":
        save_file(released, path)
    elif kind == "training":
        # What EDM2 writes to continue a training: raw weights, averages in a list.
        torch.save({"net": released, "ema": {"stds": [0.05], "emas": [released]}, "state": {"cur_nimg": 3}}, path)
    elif kind == "inner":
        torch.save({k.removeprefix("unet."): v for k, v in released.items() if k.startswith("unet.")}, path)
    else:
        torch.save(small(reference).state_dict() if kind == "own" else released, path)
    with pytest.raises(UsageError, match="--like"):
        convert(path, tmp_path / "out", name="x")
    if kind == "inner":
        with pytest.raises(DistillkitError, match=r"missing: logvar\.linear\.weight"):
            convert(path, tmp_path / "out", name="x", like=like)
        return
    convert(path, tmp_path / "out", name="x", like=like)
    with torch.no_grad():
        close(load_teacher(str(tmp_path / "out")).denoiser(*inputs(reference)), reference.tensors["denoised"])


def test_every_card_describes_its_samples_and_what_guides_it():
    assert len(CATALOG) == len({card.url for card in CATALOG.values()}) == 51
    for name, card in CATALOG.items():
        codec, conditioner = (
            registry().build(kind, described)
            for kind, described in (("codecs", card.spec.codec), ("conditioners", card.spec.conditioner))
        )
        side = 512 if "512" in name else 64
        assert codec.decoded_shape(card.spec.shape) == (3, side, side)
        assert conditioner.count == (0 if "uncond" in name else 1000)
        assert card.variant_of == "" or CATALOG[card.variant_of].variant_of == ""
        if "guided by" in card.published:
            guide = CATALOG[re.search(r"guided by (\S+) with weight", card.published)[1]]
            assert guide.spec.shape == card.spec.shape and name in guide.published
            uncond = "uncond" in guide.name
            assert guide.spec.network["arguments"]["network"]["label_dim"] == (0 if uncond else 1000)
    assert CATALOG["edm2-img512-s"].aliases == ("edm2-img512-s-fid", "edm2-img512-s-2147483-0.130")
    assert CATALOG["edm2-img512-s"].url.endswith("/posthoc-reconstructions/edm2-img512-s-2147483-0.130.pkl")
