"""Weights as their programs publish them become teachers that compute and sample what those programs do."""

import argparse
import copy
import json
import re
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from torch import nn

from distillkit import Condition, DistillkitError, UsageError, load_student, load_teacher
from distillkit.engine.preparation import checkpoint_gradients
from distillkit.evaluation.presets import presets, protocol_for
from distillkit.evaluation.reference import load_reference
from distillkit.models.adm import catalog as adm_catalog
from distillkit.models.adm import layout as adm_layout
from distillkit.models.adm.names import published_form, published_names
from distillkit.models.build import build_denoiser
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.vae import AutoencoderKL
from distillkit.models.dit import catalog as dit_catalog
from distillkit.models.dit.layout import codec_of
from distillkit.models.original import Original
from distillkit.models.store.convert import convert
from distillkit.progress import Quiet
from distillkit.registry import registry
from tests.models import pipelines
from tests.models.original_layouts import weights

UNETS = ("imagenet", "legacy", "halved", "improved")
TRANSFORMERS = ("dit_patch2", "dit_patch4", "sit_patch2", "sit_patch4")


def close(found, expected):
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory):
    """An autoencoder that was published alone, as Stable Diffusion's fine-tuned ones are."""
    folder = tmp_path_factory.mktemp("vae") / "sd-vae"
    torch.manual_seed(0)
    pipelines.vae().save_pretrained(folder)
    return folder


@pytest.fixture
def case(golden, vae_folder):
    """name -> (weights, settings that they do not say, what the program computed)."""

    def make(name):
        reference = golden("guided_diffusion" if name in UNETS else "dit_and_sit")
        described = reference.description["cases"][name]
        network, diffusion = described["network"], described.get("diffusion", {})
        keys = ("num_heads", "num_head_channels", "use_new_attention_order", "num_classes")
        asked = {key: network[key] for key in keys if key in network}
        if name in UNETS:
            asked.pop("num_classes", None)
            asked |= {
                key: diffusion[key]
                for key in ("noise_schedule", "rescale_timesteps", "predict_xstart")
                if key in diffusion
            }
            asked |= {"image_size": 8, "diffusion_steps": diffusion.get("steps", 1000)}
        else:
            asked |= {"model": "SiT" if name.startswith("sit") else "DiT", "vae": vae_folder}
        text = {key: str(value) for key, value in asked.items()}
        return weights(described["shapes"], described["seed"]), text, reference.part(f"{name}.")

    return make


@pytest.fixture
def converted(case, tmp_path):
    """name -> (teacher, what the program computed, what was said)."""

    def make(name):
        state, asked, expected = case(name)
        torch.save(state, tmp_path / f"{name}.pt")
        said = []
        convert(tmp_path / f"{name}.pt", tmp_path / name, name=name, asked=asked, say=said.append)
        return load_teacher(str(tmp_path / name)), expected, said

    return make


@pytest.fixture
def converted_by_command(case, inside, tmp_path):
    """As `converted`, by the command line."""

    def make(name):
        state, asked, expected = case(name)
        torch.save(state, tmp_path / "original.pt")
        options = [f"--set={key}={value}" for key, value in asked.items()]
        done = inside("teachers", "convert", "original.pt", "--output-dir", "mine", *options)
        assert done.returncode == 0, done.stderr
        return load_teacher(str(tmp_path / "mine")), expected, done.stdout

    return make


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_computes_and_samples_what_its_program_does(converted_by_command, name):
    teacher, expected, said = converted_by_command(name)
    assert ("left out: the variance" in said) == (name != "legacy")
    condition = Condition(labels=expected["y"]) if "y" in expected else Condition()
    with torch.no_grad():
        close(teacher.denoiser.model(expected["x"], expected["t"].float(), condition), expected["out"])
    close(teacher.sample(expected["x"], condition, steps=10, solver="ddim"), expected["ddim10"])
    assert (teacher.spec.solver, teacher.conditioner.count, teacher.conditioner.has_null) == (
        "ddim", 5 if "y" in expected else 0, False,
    )  # fmt: skip
    free = teacher.schedule.model_copy(update={"clip": 0.0})
    teacher.denoiser.schedule = free
    close(teacher.sample(expected["x"], condition, steps=10, solver="ddim"), expected["ddim10_free"])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_computes_and_samples_what_its_program_does(converted_by_command, name):
    teacher, expected, said = converted_by_command(name)
    guidable = name.endswith("patch2")
    assert ("guidance is of all channels" in said) == ("a variance" in said) == guidable
    assert teacher.conditioner.has_null == guidable
    flow, classes = name.startswith("sit"), teacher.conditioner.count
    labels, t = expected["y"], expected["t"].float()
    # The program's number of no class is ours -1; SiT counts time from the noise, and its velocity leads to the data.
    given = Condition(labels=torch.where(labels == classes, -1, labels))
    with torch.no_grad():
        out = teacher.denoiser.model(expected["x"], 1 - t if flow else t, given)
    close(-out if flow else out, expected["out"])
    condition = Condition(labels=expected["classes"])
    for key in sorted(expected.keys() & {"ddim10", "euler8", "heun8", "ddim10_guided", "euler8_guided"}):
        solver, steps, _ = re.fullmatch(r"([a-z]+)(\d+)(_guided)?", key).groups()
        guidance = 3.0 if key.endswith("guided") else 1.0
        close(
            teacher.sample(expected["x"], condition, steps=int(steps), solver=solver, guidance=guidance), expected[key]
        )


def training(case, name, **arguments):
    """A checkpoint of a training: the average, other weights, an optimiser and the options."""
    state, _, expected = case(name)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    model = {f"module.{key}": value + 1 for key, value in state.items()}
    checkpoint = {"model": model, "ema": state, "opt": optimizer.state_dict()}
    return {**checkpoint, **({"args": argparse.Namespace(**arguments)} if arguments else {})}, expected


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_of_a_training_says_what_it_is_and_its_average_is_read(case, inside, tmp_path, vae_folder, legacy):
    checkpoint, expected = training(
        case, "sit_patch2", model="SiT-XL/2", num_classes=5, vae="mse", path_type="Linear", prediction="velocity",
        loss_weight=None, image_size=64, cfg_scale=4.0, wandb=True,
    )  # fmt: skip
    torch.save(checkpoint, tmp_path / "0400000.pt", _use_new_zipfile_serialization=not legacy)
    done = inside("teachers", "convert", "0400000.pt", "--set", "num_heads=4", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert "read: ema, the average of the weights; left out: 'model', 'opt', 'args'" in done.stdout
    assert "model SiT, num_classes 5, path_type Linear, prediction velocity, vae mse (its own record" in done.stdout
    assert "hf:stabilityai/sd-vae-ft-mse, fetched when it is first needed" in done.stdout
    teacher = load_teacher(str(tmp_path / "0400000"))
    assert teacher.spec.name == "mine" and teacher.codec.parts.source.endswith("sd-vae-ft-mse")
    close(
        teacher.sample(expected["x"], Condition(labels=expected["classes"]), steps=8, solver="euler"),
        expected["euler8"],
    )


def test_without_an_average_the_weights_are_read_whatever_wraps_their_names(case, tmp_path):
    state, asked, expected = case("dit_patch2")
    halves = {f"module._orig_mod.{key}": value.half() for key, value in state.items()}
    torch.save({"model": halves, "args": argparse.Namespace(model="DiT-B/4")}, tmp_path / "x.pt")
    said = []
    asked.pop("model")
    convert(tmp_path / "x.pt", tmp_path / "out", name="x", asked=asked, say=said.append)
    assert "read: model, the weights; there is no average of them; left out: 'args'" in said
    assert f"{len(state)} weights in float16: kept in float32" in said
    teacher = load_teacher(str(tmp_path / "out"))
    assert {p.dtype for p in teacher.denoiser.parameters()} == {torch.float32}
    found = teacher.sample(expected["x"], Condition(labels=expected["classes"]), steps=10, solver="ddim")
    assert (found - expected["ddim10"]).abs().max() < 0.02 * expected["ddim10"].abs().max()


def test_a_teacher_of_the_kind_says_which_of_both_a_transformer_is(case, converted, inside, tmp_path, vae_folder):
    converted("sit_patch2")
    state, _, _ = case("sit_patch2")
    torch.save({key: 2 * value for key, value in state.items()}, tmp_path / "b.pt")
    done = inside("teachers", "convert", "b.pt", "--like", "sit_patch2")
    assert done.returncode == 0, done.stderr
    assert f"model SiT, num_heads 4, vae {vae_folder} (as sit_patch2)" in done.stdout
    first, second = (load_teacher(str(tmp_path / name)) for name in ("sit_patch2", "b"))
    assert first.spec.network == second.spec.network and first.codec == second.codec
    named = convert(tmp_path / "b.pt", tmp_path / "c", name="c", like=dit_catalog.CATALOG["dit-xl2-256"].spec,
                    asked={"num_heads": "4"})  # fmt: skip
    assert named.network["kind"] == "distillkit:DiT" and named.shape == (4, 8, 8)


def without(state, *parts):
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


def changed(state, **values):
    return {**state, **{key.replace("__", "."): value for key, value in values.items()}}


@pytest.mark.parametrize(
    ("name", "change", "fragments"),
    [
        ("imagenet", lambda s: without(s, "output_blocks"), ["has no output_blocks", "classifier"]),
        ("imagenet", lambda s: without(s, "output_blocks.1."), ["blocks or widths that no UNetModel has"]),
        ("imagenet", lambda s: without(s, "middle_block.1.qkv.bias"), ["missing: middle_block.1.qkv.bias (192,)"]),
        ("imagenet", lambda s: without(s, "out.2"), ["lacks out.2.weight"]),
        ("imagenet", lambda s: changed(s, out__2__weight=torch.zeros(6)), ["out.2.weight is of shape (6,)", "4 dim"]),
        ("imagenet", lambda s: changed(s, out__2__bias=torch.zeros(5)), ["out.2.bias: (5,) in the file, (6,)"]),
        ("imagenet", lambda s: changed(s, extra__weight=torch.zeros(5)), ["not in the network: extra.weight (5,)"]),
        ("imagenet", lambda s: changed(s, out__2__bias=torch.full((6,), torch.nan)), ["out.2.bias holds NaN"]),
        (
            "imagenet",
            lambda s: changed(s, out__2__bias=torch.ones(6).int()),
            ["out.2.bias is of int32, and float32 is"],
        ),
        ("imagenet", lambda s: {**s, "module.out.2.bias": torch.ones(6)}, ["holds 'out.2.bias' more than once"]),
        ("imagenet", lambda s: changed(s, input_blocks__0__0__weight=torch.zeros(32, 6, 3, 3)), ["upsamplers"]),
        ("imagenet", lambda s: changed(s, time_embed__0__weight=torch.zeros(0, 32)), ["of shape (0, 32)"]),
        ("dit_patch2", lambda s: without(s, "pos_embed"), ["lacks pos_embed"]),
        ("dit_patch2", lambda s: without(s, "blocks.1.attn.qkv.bias"), ["missing: blocks.1.attn.qkv.bias (96,)"]),
        ("dit_patch2", lambda s: without(s, "blocks."), ["lacks blocks.0.mlp.fc1.weight"]),
        ("dit_patch2", lambda s: changed(s, pos_embed=torch.zeros(1, 15, 32)), ["15 places", "square number"]),
        ("dit_patch2", lambda s: changed(s, final_layer__linear__weight=torch.zeros(31, 32)), ["31 numbers"]),
        ("dit_patch2", lambda s: changed(s, projectors__0__weight=torch.zeros(2)), ["not in the network: projectors"]),
    ],
)
def test_damaged_weights_are_refused_with_their_own_names(case, inside, tmp_path, name, change, fragments):
    state, asked, _ = case(name)
    torch.save(change(state), tmp_path / "bad.pt")
    done = inside("teachers", "convert", "bad.pt", *[f"--set={key}={value}" for key, value in asked.items()])
    assert done.returncode == 1 and "Traceback" not in done.stderr and "bad.pt" in done.stderr
    assert all(fragment in " ".join(done.stderr.split()) for fragment in fragments), done.stderr
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("name", "changes", "fragments"),
    [
        (
            "imagenet",
            {"image_size": None},
            ["does not say the side of its pictures", "teachers convert x.pt --set image_size=..."],
        ),
        ("imagenet", {"image_size": "9"}, ["9 x 9 cannot be halved 1 times"]),
        ("imagenet", {"image_size": "9" * 5000}, ["--set image_size: "]),
        ("imagenet", {"image_size": "big"}, ["--set image_size: Input should be a valid integer", "(it is 'big')"]),
        ("imagenet", {"num_head_channels": "48"}, ["attention of 64 channels does not divide into heads of 48"]),
        ("imagenet", {"num_head_channels": None, "num_heads": "5"}, ["does not divide into 5 heads"]),
        ("imagenet", {"noise_schedule": "sigmoid"}, ["--set noise_schedule: Input should be 'linear' or 'cosine'"]),
        ("imagenet", {"heads": "4"}, ["--set heads", "no such setting; known: image_size, num_heads,"]),
        ("dit_patch2", {"model": None}, ["does not say the model, DiT or SiT", "--set model=..."]),
        ("dit_patch2", {"num_heads": None}, ["does not say the number of heads", "--set num_heads=..."]),
        ("dit_patch2", {"num_heads": "5"}, ["32 channels do not divide into 5 heads"]),
        ("dit_patch2", {"num_classes": "7"}, ["has 6 labels"]),
        ("dit_patch2", {"vae": "eight"}, ["eight has latents of 8 channels, and the network takes 4"]),
        ("dit_patch2", {"vae": "nowhere"}, ["--set vae=nowhere: there is no such folder"]),
        ("dit_patch2", {"vae": "hf:nonsense"}, ["write it as hf:ORG/REPO"]),
        ("sit_patch2", {"path_type": "GVP"}, ["path_type: Input should be 'Linear'"]),
    ],
)
def test_settings_that_do_not_fit_are_errors_of_use(case, inside, tmp_path, name, changes, fragments):
    state, asked, _ = case(name)
    torch.save(state, tmp_path / "x.pt")
    if changes.get("vae") == "eight":
        pipelines.vae(latent_channels=8).save_pretrained(tmp_path / "eight")
    options = [f"--set={key}={value}" for key, value in {**asked, **changes}.items() if value is not None]
    done = inside("teachers", "convert", "x.pt", *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(fragment in " ".join(done.stderr.split()) for fragment in fragments), done.stderr


def test_what_is_asked_twice_or_of_a_file_that_says_nothing_is_refused(case, inside, tmp_path):
    state, asked, _ = case("imagenet")
    torch.save(state, tmp_path / "x.pt")
    options = [f"--set={key}={value}" for key, value in asked.items()]
    done = inside("teachers", "convert", "x.pt", *options, "--set", "image_size=16")
    assert done.returncode == 2 and "--set image_size is given as 8 and as 16" in done.stderr
    done = inside("teachers", "convert", "x.pt", "-o", "out", *options, "--like", "x.pt")
    assert done.returncode == 2 and "--like x.pt: what it is made of is known only when" in done.stderr
    (tmp_path / "x.pt").rename(tmp_path / "x-1-0.05.pt")
    done = inside("ema", "x-1-0.05.pt", "--sigma-rel", "0.1", "-o", "out")
    assert done.returncode == 2 and "image_size=...; then name the folder that it makes by --like" in done.stderr
    assert not (tmp_path / "x").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("cd_imagenet64_l2.pt", "hf:openai/diffusers-cd_imagenet64_l2,"),
        ("ct_bedroom256.pt", "hf:openai/diffusers-ct_bedroom256,"),
        ("edm_cat256_ema.pt", "rename it"),
    ],
)
def test_consistency_models_of_the_same_layout_are_told_by_their_names(case, inside, tmp_path, name, where):
    state, asked, _ = case("imagenet")
    torch.save(state, tmp_path / name)
    options = [f"--set={key}={value}" for key, value in asked.items()]
    done = inside("teachers", "convert", name, "-o", "out", *options)
    assert done.returncode == 1 and where in done.stderr and "consistency_models" in done.stderr
    assert ("diffusers-" in done.stderr) == ("edm" not in name) and not (tmp_path / "out").exists()
    done = inside("students", "convert", name, "--levels", "1", "--teacher", "adm-imagenet64", "-o", "out")
    assert done.returncode == 1 and where in done.stderr


def test_networks_without_a_variance_are_none_of_the_published(case, tmp_path):
    state, asked, _ = case("imagenet")
    for key in ("out.2.weight", "out.2.bias"):
        state[key] = state[key][:3]
    torch.save(state, tmp_path / "x.pt")
    said = []
    convert(tmp_path / "x.pt", tmp_path / "out", name="x", asked=asked, say=said.append)
    assert "predicts no variance, as guided-diffusion's published models do" in said[-1]
    sizes = adm_layout.Sizes(3, 192, (1, 2, 3, 4), 3, learned=False)
    assert adm_catalog.published(64, sizes)["noise_schedule"] == "linear"


def test_a_size_counts_however_it_is_written(tmp_path):
    original = Original(tmp_path / "x.pt", "x", {}, asked={"image_size": "64.0"})
    known = adm_layout.known(original, adm_layout.Sizes(3, 128, (1, 2, 2), 3))
    settings, _ = adm_layout.settled(adm_layout.ADMSettings, original, known)
    assert (settings.image_size, settings.noise_schedule, settings.num_head_channels) == (64, "cosine", 64)


def test_settings_are_asked_of_nothing_else(golden, tmp_path, inside, tiny_teacher_folder):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    done = inside("teachers", "convert", "x.pt", "--like", tiny_teacher_folder, "--set", "num_heads=4")
    assert done.returncode == 2 and "nothing can be set of x.pt" in done.stderr
    done = inside("teachers", "convert", "x.pt", "--set", "num_heads")
    assert done.returncode == 2 and "write it as NAME=VALUE" in done.stderr


@pytest.mark.parametrize("name", ["imagenet", "dit_patch2"])
def test_a_teacher_of_another_program_is_no_likeness(case, tmp_path, name):
    state, asked, _ = case(name)
    torch.save(state, tmp_path / "x.pt")
    like = registry().named("teachers")["edm-imagenet64"].value.card.spec
    with pytest.raises(UsageError, match="edm-imagenet64 is of another network"):
        convert(tmp_path / "x.pt", tmp_path / "out", name="x", like=like, asked=asked)


def test_options_that_are_more_than_plain_values_are_refused_and_never_made(case, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    state, asked, _ = case("dit_patch2")
    torch.save({"ema": state, "args": argparse.Namespace(model=Bomb())}, tmp_path / "x.pt")
    with pytest.raises(DistillkitError, match=r"asks for the global '_?io\.open'"):
        convert(tmp_path / "x.pt", tmp_path / "out", name="x", asked=asked)
    assert not (tmp_path / "canary").exists()


def test_a_file_does_not_choose_what_else_is_read(case, tmp_path):
    state, asked, _ = case("sit_patch2")
    asked.pop("vae"), asked.pop("model")
    options = argparse.Namespace(path_type="Linear", prediction="velocity", vae="hf:org/another", num_classes="\x1b[2J")
    torch.save({"ema": state, "args": options}, tmp_path / "x.pt")
    said = []
    spec = convert(tmp_path / "x.pt", tmp_path / "out", name="x", asked=asked, say=said.append)
    assert spec.codec["parts"]["source"] == "hf:stabilityai/sd-vae-ft-ema"
    asked.pop("num_classes")
    with pytest.raises(UsageError) as refused:
        convert(tmp_path / "x.pt", tmp_path / "again", name="x", asked=asked)
    assert "num_classes" in str(refused.value) and "\x1b" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(adm_catalog.CATALOG))
def test_published_weights_alone_say_what_their_card_says(name, tmp_path):
    """From names and shapes, and what is known of the published networks of such sizes."""
    card = adm_catalog.CATALOG[name]
    with torch.device("meta"):
        network = build_denoiser(card.spec.network).model
    own = dict(network.named_parameters())
    published = {theirs: published_form(ours, own[ours], 3) for ours, theirs in published_names(network).items()}
    original = Original(tmp_path / "x.pt", card.name, published)
    sizes = adm_layout._sizes(original)
    settings, note = adm_layout.settled(adm_layout.ADMSettings, original, adm_layout.known(original, sizes))
    assert adm_layout.describe(card.name, sizes, settings).network == card.spec.network
    assert (
        settings.use_new_attention_order == (name == "adm-imagenet64") and "`teachers convert --set NAME=VALUE`" in note
    )
    assert (settings.noise_schedule == "cosine") == (name == "adm-imagenet64")
    assert settings.num_heads == (4 if name == "adm-imagenet128" else None)


@pytest.mark.parametrize("like", [None, "adm-imagenet64"])
def test_heads_that_are_asked_for_are_those_of_the_network_whatever_was_published(tmp_path, like):
    spec = adm_catalog.CATALOG[like].spec if like else None
    original = Original(tmp_path / "x.pt", "x", {}, like=spec, asked={"num_heads": "6", "image_size": "64"})
    known = adm_layout.known(original, adm_layout.Sizes(3, 192, (1, 2, 3, 4), 3))
    settings, note = adm_layout.settled(adm_layout.ADMSettings, original, known)
    assert (settings.num_heads, settings.num_head_channels, settings.noise_schedule) == (6, None, "cosine")
    assert settings.use_new_attention_order and "num_head" not in note


def test_published_teachers_are_measured_against_the_statistics_of_their_papers(tmp_path):
    for card in {**adm_catalog.CATALOG, **dit_catalog.CATALOG}.values():
        if "imagenet" in card.reference and card.name != "adm-imagenet64":
            side = card.spec.codec.get("factor", 1) * card.spec.shape[-1]
            protocol = protocol_for(card.name, (3, side, side), 1000)
            assert presets()[protocol].reference.url == card.reference
    # ADM's files hold pictures, and statistics of other features, beside those that are read.
    moments = {"mu": np.arange(3.0), "sigma": np.eye(3)}
    np.savez(
        tmp_path / "adm.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), mu_s=np.zeros(5), sigma_s=np.eye(5), **moments
    )
    found = load_reference(tmp_path / "adm.npz", name="adm", count=10)
    assert torch.equal(found.mean, torch.arange(3.0, dtype=torch.float64))
    assert torch.equal(found.covariance, torch.eye(3, dtype=torch.float64))


def test_models_of_improved_diffusion_are_told_from_the_others():
    for classes, rescaled in ((0, True), (1000, False)):
        sizes = adm_layout.Sizes(3, 128, (1, 2, 3, 4), 3, classes=classes, resample_blocks=False)
        found = adm_catalog.published(64, sizes)
        assert (found["diffusion_steps"], found["num_heads"], found["rescale_timesteps"]) == (4000, 4, rescaled)
    assert adm_catalog.published(64, adm_layout.Sizes(3, 128, (1, 2, 3, 4), 2))["diffusion_steps"] == 1000


def shrunk(name):
    """Weights like a published file's, with few channels."""
    if name == "sit-xl2-256":
        network = dit_catalog.CATALOG[name].spec.network["arguments"]["network"]
        small = {**network, "hidden_size": 384, "depth": 1, "mlp_width": 64, "num_heads": 6}
        with torch.device("meta"):
            made = build_denoiser(
                {"kind": "distillkit:SiT", "arguments": {"network": small, "schedule": {"kind": "flow"}}}
            )
        return {key.removeprefix("model."): list(value.shape) for key, value in made.state_dict().items()}
    network = copy.deepcopy(adm_catalog.CATALOG[name].spec.network)
    network["arguments"]["network"]["model_channels"] = 64
    with torch.device("meta"):
        model = build_denoiser(network).model
    own = dict(model.named_parameters())
    return {theirs: list(published_form(ours, own[ours], 3).shape) for ours, theirs in published_names(model).items()}


@pytest.mark.parametrize("name", ["adm-imagenet64", "sit-xl2-256"])
def test_a_published_file_is_fetched_and_converted_by_its_name(name, inside, tmp_path, monkeypatch, caplog):
    card = registry().named("teachers")[name].value.card
    path = tmp_path / "host" / re.sub(r"https://[^/]+/|\?.*", "", card.url)
    path.parent.mkdir(parents=True)
    torch.save({key: torch.zeros(shape) for key, shape in shrunk(name).items()}, path)
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DISTILLKIT_MIRROR", str(tmp_path / "host"))
    done = inside("teachers", "fetch", card.aliases[0])
    assert done.returncode == 0, done.stderr
    assert "MIT" in done.stdout and f"(as {name})" in done.stdout and "recorded at first use" in done.stdout
    remark = "model_channels is 64; the catalogue has 192" if name.startswith("adm") else "hidden_size is 384; the"
    assert remark in caplog.text
    facts = json.loads((tmp_path / "cache" / "teachers" / name / "teacher.json").read_text())
    assert facts["network"]["kind"] == card.spec.network["kind"] and facts["licence"] == card.spec.licence
    assert facts["network"]["arguments"]["schedule"] == card.spec.network["arguments"]["schedule"]
    assert facts["codec"] == card.spec.codec and facts["conditioner"] == card.spec.conditioner


def test_a_file_by_the_name_of_a_published_one_is_taken_for_it(inside, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "SiT-XL-2-256x256.pt"
    torch.save({key: torch.zeros(shape) for key, shape in shrunk("sit-xl2-256").items()}, path)
    done = inside("teachers", "convert", path.name)
    # Its folder is called like the published teacher too.
    assert (
        "--teacher ./SiT-XL-2-256x256" in done.stdout
        and inside("teachers", "show", "./SiT-XL-2-256x256").returncode == 0
    )
    teacher = load_teacher(str(path), Quiet())
    assert teacher.spec.network["kind"] == "distillkit:SiT" and teacher.spec.licence.startswith("MIT")
    path = path.rename(tmp_path / "own.pt")
    with pytest.raises(UsageError, match="does not say the model, DiT or SiT"):
        load_teacher(str(path), Quiet())


def test_an_autoencoder_that_was_published_alone_decodes(vae_folder, tmp_path):
    whole = tmp_path / "whole"
    pipelines.dit(whole)
    torch.manual_seed(0)
    pipelines.vae().save_pretrained(whole / "vae")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made = [AutoencoderKL(parts=PipelineParts(source=str(folder)), factor=2).hashed() for folder in (vae_folder, whole)]
    assert torch.equal(made[0].decode(latents), made[1].decode(latents))
    assert made[0].parts.sha256 == made[1].parts.sha256
    altered = tmp_path / "altered"
    pipelines.vae(layers_per_block=2).save_pretrained(altered)
    other = AutoencoderKL(parts=made[0].parts.model_copy(update={"source": str(altered)}), factor=2)
    with pytest.raises(DistillkitError, match=r"config\.json is another file"):
        other.decode(latents)


def test_of_a_repository_that_is_an_autoencoder_alone_its_files_are_downloaded(vae_folder, monkeypatch):
    asked = []

    def download(repository, allow_patterns=None, **_):
        asked.append(allow_patterns)
        return str(vae_folder)

    files = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "README.md"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: files)
    latents = torch.zeros(1, 4, 8, 8)
    codec = codec_of("ema", 4).model_copy(update={"factor": 2})
    hashed = codec.hashed()
    assert torch.equal(codec.decode(latents), hashed.decode(latents)) and len(hashed.parts.sha256) == 2
    # With and without what was recorded, the same files are wanted.
    for patterns in filter(None, asked):
        wanted = [name for name in files if any(fnmatch(name, pattern) for pattern in patterns)]
        assert wanted == files[:2]


@pytest.mark.parametrize("name", ["imagenet", "legacy", "sit_patch2"])
def test_networks_can_be_trained_looked_into_and_held_in_less(converted, name):
    teacher, expected, _ = converted(name)
    x = expected["x"]
    condition = Condition(labels=expected["y"] % 5) if "y" in expected else Condition()
    t = teacher.schedule.grid(3)[1:2].float().expand(len(x))
    gradients = []
    for recompute in (False, True):
        network = teacher.copy_denoiser()
        assert checkpoint_gradients(network) if recompute else True
        network(x, t, condition).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))
    [middle, deep] = teacher.denoiser.features(x, t, condition, ["bottleneck", teacher.denoiser.layers_at([1.0])[0]])
    assert middle.shape[2:] == (4, 4) and deep.ndim == 4
    with torch.no_grad():
        whole = teacher(x, t, condition)
        less = copy.deepcopy(teacher.denoiser)
        for parameter in less.parameters():
            parameter.data = parameter.data.bfloat16()
        assert (less(x, t, condition) - whole).abs().max() < 0.1 * whole.abs().max()


def small(tmp_path, name, case):
    """A file of weights that train in milliseconds, and the settings that they do not say."""
    state, asked, _ = case("sit_patch2")
    if name == "ADM":
        settings = {"image_size": 8, "num_heads": 2, **adm_catalog.published(8, adm_layout.Sizes(1, 32, (1,), 1))}
        spec = adm_layout.describe(
            "small", adm_layout.Sizes(1, 32, (1,), 1, classes=3), adm_layout.ADMSettings.model_validate(settings)
        )
        with torch.device("meta"):
            network = build_denoiser(spec.network).model
        own = dict(network.named_parameters())
        state = weights(
            {theirs: published_form(ours, own[ours], 1).shape for ours, theirs in published_names(network).items()}, 0
        )
        asked = {"image_size": "8", "num_heads": "2"}
    torch.save(state, tmp_path / "original.pt")
    return [f"--set={key}={value}" for key, value in asked.items()]


@pytest.mark.parametrize("method", ["consistency", "dmd"])
@pytest.mark.parametrize("name", ["ADM", "SiT"])
def test_from_the_original_file_to_a_student(case, inside, tmp_path, name, method):
    assert inside("teachers", "convert", "original.pt", "-o", "mine", *small(tmp_path, name, case)).returncode == 0
    # Previews and pairs are the teacher's, which takes its time.
    facts = tmp_path / "mine" / "teacher.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "solver_steps": 2}))
    shape = (1, 8, 8) if name == "ADM" else (3, 16, 16)
    images = np.random.default_rng(0).integers(0, 256, (6, *shape[1:], shape[0]), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images, np.arange(6) % 3)
    source = ["--pairs-count", "8"] if method == "dmd" else ["--data", "data.npz"]
    done = inside(
        "run", method, "--teacher", "mine", "--duration", "8", "--batch", "4", "--protocol", "none", "--output-dir",
        "out", "--distance", "l2", *source,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pixels = load_student(str(tmp_path / "out"))(3, seed=0)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, *shape)
