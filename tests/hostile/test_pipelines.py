"""Pipelines that lack something, or hold something else: one message that names what and where, before any work."""

import json
import shutil
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillkit import DistillkitError, UsageError, load_teacher
from tests.models import pipelines

UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)  # fmt: skip
FAMILIES = {
    "sd": pipelines.stable_diffusion, "sdxl": pipelines.sdxl, "dit": pipelines.dit, "pixart": pipelines.pixart,
    "sd3": pipelines.sd3, "flux": pipelines.flux,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Makes every family's pipeline once."""
    root, made = tmp_path_factory.mktemp("whole"), {}

    def of(family):
        if family not in made:
            made[family] = FAMILIES[family](root / family)
        return made[family]

    return of


@pytest.fixture
def copied(whole, tmp_path):
    def of(family):
        return shutil.copytree(whole(family), tmp_path / "tiny")

    return of


def use(folder):
    """Everything that a pipeline's files are read for."""
    teacher = load_teacher(str(folder))
    teacher.conditioner.encode(teacher.conditioner.in_turn([0]))
    teacher.codec.decode(torch.zeros(1, *teacher.spec.shape[:1], 4, 4))


def config(file, **values):
    return lambda folder: pipelines.change(folder / file, **values)


def without(name):
    def spoil(folder):
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return spoil


def other_weights(file):
    """A tensor of another shape, and one of another name."""

    def spoil(folder):
        state = load_file(folder / file)
        name, value = next((n, v) for n, v in state.items() if v.ndim == 2)
        save_file({**state, name: value[:, :-1].contiguous()}, folder / file)

    return spoil


def renamed_weights(file):
    def spoil(folder):
        save_file({f"model.{name}": value for name, value in load_file(folder / file).items()}, folder / file)

    return spoil


def lost_shard(component, name):
    def spoil(folder):
        whole = folder / component / f"{name}.safetensors"
        state = load_file(whole)
        whole.unlink()
        files = {key: f"{name}-{1 + k % 2:05d}-of-00002.safetensors" for k, key in enumerate(state)}
        save_file(
            {k: v for k, v in state.items() if "00001-" in files[k]}, folder / component / files[next(iter(state))]
        )
        index = {"metadata": {}, "weight_map": files}
        (folder / component / f"{name}.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def only_vocabulary_gone(folder):
    for path in (folder / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()


def fewer_words(folder):
    """A text encoder of another vocabulary than the tokenizer's."""
    state = load_file(folder / TEXT)
    [name] = (name for name in state if name.endswith("token_embedding.weight"))
    save_file({**state, name: state[name][:20].contiguous()}, folder / TEXT)
    pipelines.change(folder / "text_encoder" / "config.json", vocab_size=20)


def pickled(component, name):
    def spoil(folder):
        (folder / component / f"{name}.safetensors").unlink()
        stem = name if name != "model" else "pytorch_model"
        (folder / component / f"{stem}.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/ran'\ntR.")

    return spoil


BAD = [
    # Parts that are not there.
    ("sd", config("model_index.json", vae=...), UsageError, ["no vae", "UNet2DConditionModel"]),
    ("sd", config("model_index.json", vae=[None, None]), UsageError, ["no vae"]),
    ("sd", without("vae"), UsageError, ["vae", "model_index.json", "not there"]),
    ("sd", without("vae/config.json"), UsageError, ["vae/config.json is missing"]),
    ("sd", without(VAE), UsageError, ["vae has no weights"]),
    ("sd", without("unet"), UsageError, ["unet", "not there"]),
    ("sd", without("scheduler"), UsageError, ["scheduler_config.json is missing"]),
    ("sd", without("tokenizer"), UsageError, ["tokenizer", "not there"]),
    ("sd", only_vocabulary_gone, UsageError, ["tokenizer has no vocabulary"]),
    ("sd", without("text_encoder"), UsageError, ["text_encoder", "not there"]),
    ("sd", without(TEXT), UsageError, ["text_encoder has no weights"]),
    ("sdxl", config("model_index.json", text_encoder_2=...), UsageError, ["no text_encoder_2"]),
    ("sd3", config("model_index.json", tokenizer_2=...), UsageError, ["no tokenizer_2"]),
    ("flux", without("text_encoder_2"), UsageError, ["text_encoder_2", "not there"]),
    ("pixart", config("model_index.json", text_encoder=...), UsageError, ["no text_encoder"]),
    ("dit", without("vae"), UsageError, ["vae", "not there"]),
    # Parts of a class that is not known.
    (
        "sd",
        config("scheduler/scheduler_config.json", _class_name="ScoreSdeVeScheduler"),
        UsageError,
        ["ScoreSdeVeScheduler", "DDIMScheduler"],
    ),
    (
        "sd",
        config("unet/config.json", _class_name="UNetMotionModel"),
        UsageError,
        ["UNetMotionModel", "UNet2DConditionModel", "FluxTransformer2DModel"],
    ),
    ("sd", config("vae/config.json", _class_name="AutoencoderDC"), UsageError, ["AutoencoderDC", "AutoencoderKL"]),
    (
        "sd",
        config("text_encoder/config.json", architectures=["ChineseCLIPModel"]),
        UsageError,
        ["ChineseCLIPModel", "CLIPTextModel"],
    ),
    # Options that are not followed.
    ("sd", config("unet/config.json", in_channels=9), UsageError, ["9 channels", "inpainting"]),
    ("sd", config("unet/config.json", class_embed_type="timestep"), UsageError, ["class_embed_type"]),
    ("sd", config("unet/config.json", time_cond_proj_dim=256), UsageError, ["time_cond_proj_dim"]),
    ("sdxl", config("unet/config.json", projection_class_embeddings_input_dim=64), UsageError, ["refine"]),
    (
        "flux",
        config("transformer/config.json", in_channels=96, out_channels=16),
        UsageError,
        ["96 channels", "control"],
    ),
    ("sd3", config("transformer/config.json", in_channels=9), UsageError, ["9 channels", "inpainting"]),
    ("dit", config("transformer/config.json", in_channels=3), UsageError, ["3 channels"]),
    ("dit", config("transformer/config.json", norm_type="layer_norm"), DistillkitError, ["layer_norm"]),
    # Files of other models, or damaged.
    ("sd", other_weights(UNET), DistillkitError, ["unet", "do not fit"]),
    ("sd", renamed_weights(UNET), DistillkitError, ["unet", "do not fit"]),
    ("sd", other_weights(VAE), DistillkitError, ["vae", "do not fit"]),
    ("sd", renamed_weights(VAE), DistillkitError, ["vae", "do not fit"]),
    ("sd", other_weights(TEXT), DistillkitError, ["text_encoder", "differ"]),
    ("sd", renamed_weights(TEXT), DistillkitError, ["text_encoder", "missing"]),
    ("sd3", other_weights("text_encoder_3/model.safetensors"), DistillkitError, ["text_encoder_3", "differ"]),
    ("sd", lost_shard("unet", "diffusion_pytorch_model"), DistillkitError, ["unet", "00002-of-00002", "not there"]),
    ("sd", lost_shard("vae", "diffusion_pytorch_model"), DistillkitError, ["vae", "00002-of-00002", "not there"]),
    ("sd", lost_shard("text_encoder", "model"), DistillkitError, ["text_encoder", "00002-of-00002", "not there"]),
    ("sd", pickled("unet", "diffusion_pytorch_model"), DistillkitError, ["os.system"]),
    ("sd", pickled("vae", "diffusion_pytorch_model"), DistillkitError, ["os.system"]),
    ("sd", pickled("text_encoder", "model"), DistillkitError, ["os.system"]),
    ("sd", lambda f: (f / "vae/config.json").write_text("{"), DistillkitError, ["vae/config.json"]),
    ("sd", lambda f: (f / "tokenizer/tokenizer.json").write_text("{"), DistillkitError, ["tokenizer"]),
    ("sd", lambda f: (f / TEXT).write_bytes(b"<html>"), DistillkitError, ["text_encoder", "web page"]),
    ("sd", lambda f: shutil.copy(f / VAE, f / TEXT), DistillkitError, ["text_encoder", "missing"]),
    ("sd", lambda f: shutil.copy(f / TEXT, f / VAE), DistillkitError, ["vae", "do not fit"]),
    ("sd", config("text_encoder/config.json", vocab_size=20), DistillkitError, ["text_encoder", "token_embedding"]),
    ("sd", fewer_words, DistillkitError, ["tokenizer", "54 tokens", "20", "do not belong together"]),
]


@pytest.mark.parametrize(("family", "spoil", "error", "named"), BAD)
def test_one_message_names_what_and_where(copied, family, spoil, error, named):
    folder = copied(family)
    spoil(folder)
    with pytest.raises(DistillkitError) as raised:
        use(folder)
    said = str(raised.value)
    assert isinstance(raised.value, error) and (error is UsageError) == isinstance(raised.value, UsageError), said
    assert all(text in said for text in named) and len(said) < 1500, said


HUGE = 10**9
HOSTILE = [
    ("sd", "unet", {"block_out_channels": [HUGE, HUGE]}), ("sd", "unet", {"cross_attention_dim": HUGE}),
    ("sd", "unet", {"layers_per_block": HUGE}), ("sd", "unet", {"transformer_layers_per_block": HUGE}),
    ("sd", "unet", {"sample_size": HUGE}), ("sd", "unet", {"block_out_channels": [32] * 10_000}),
    ("sd", "unet", {"sample_size": [8]}), ("sd", "unet", {"attention_head_dim": 0}),
    ("sdxl", "unet", {"addition_time_embed_dim": HUGE}), ("sdxl", "unet", {"transformer_layers_per_block": [1, HUGE]}),
    ("sd", "vae", {"block_out_channels": [64] * 40}), ("sd", "vae", {"latent_channels": HUGE}),
    ("sd", "vae", {"scaling_factor": 0}), ("sd", "vae", {"scaling_factor": "one"}),
    ("sd", "vae", {"layers_per_block": HUGE}), ("sd", "unet", {"transformer_layers_per_block": [[256], [256]]}),
    ("sd", "text_encoder", {"num_hidden_layers": HUGE}), ("sd", "text_encoder", {"hidden_size": HUGE}),
    ("sd", "text_encoder", {"vocab_size": HUGE}), ("sd", "text_encoder", {"max_position_embeddings": HUGE}),
    ("sd", "text_encoder", {"architectures": "CLIPTextModel" * 10**4}), ("sd", "text_encoder", {"architectures": [7]}),
    ("pixart", "text_encoder", {"num_layers": HUGE}), ("pixart", "text_encoder", {"d_model": HUGE}),
    ("pixart", "text_encoder", {"d_ff": -1}), ("pixart", "transformer", {"caption_channels": HUGE}),
    ("dit", "transformer", {"sample_size": 8192}), ("dit", "transformer", {"num_layers": HUGE}),
    ("dit", "transformer", {"num_embeds_ada_norm": HUGE}), ("dit", "transformer", {"patch_size": 0}),
    ("dit", "transformer", {"sample_size": [8, 8]}), ("dit", "transformer", {"patch_size": 3}),
    ("sd3", "transformer", {"pos_embed_max_size": HUGE}), ("sd3", "transformer", {"joint_attention_dim": HUGE}),
    ("sd3", "transformer", {"num_layers": HUGE}),
    ("flux", "transformer", {"num_single_layers": HUGE}), ("flux", "transformer", {"attention_head_dim": HUGE}),
    ("flux", "transformer", {"axes_dims_rope": [HUGE, 2, 2]}), ("flux", "transformer", {"axes_dims_rope": [4]}),
    ("flux", "transformer", {"num_layers": 0, "num_single_layers": 0}), ("flux", "transformer", {"patch_size": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "component", "values"), HOSTILE)
def test_sizes_beyond_any_model_are_refused_before_they_are_built(copied, family, component, values):
    folder, began = copied(family), time.process_time()
    pipelines.change(folder / component / "config.json", **values)
    with pytest.raises(DistillkitError) as raised:
        use(folder)
    assert time.process_time() - began < 20 and len(str(raised.value)) < 1500
    assert str(folder) in str(raised.value), raised.value


INDICES = [
    {"_class_name": 7}, {"vae": "diffusers"}, {"vae": ["diffusers", 7]}, {"vae": ["../x", "AutoencoderKL", 3]},
    {"force_zeros_for_empty_prompt": "no"}, {"id2label": [1]}, {"id2label": {"0": ["x"]}},
]  # fmt: skip


@pytest.mark.parametrize("values", INDICES, ids=str)
@pytest.mark.parametrize("family", ["sdxl", "dit"])
def test_indices_that_are_none_are_read_or_refused(copied, family, values):
    folder = copied(family)
    pipelines.change(folder / "model_index.json", **values)
    try:
        use(folder)
    except DistillkitError as error:
        assert len(str(error)) < 1500


def test_a_header_that_promises_more_than_there_is(copied):
    folder = copied("sd")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (folder / VAE).write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(DistillkitError, match="vae"):
        use(folder)


@pytest.mark.parametrize(("spoil", "code"), [(without("tokenizer"), 2), (other_weights(UNET), 1)])
def test_the_command_says_it_with_the_right_code(copied, inside, spoil, code):
    folder = copied("sd")
    spoil(folder)
    done = inside("run", "dmd", "--teacher", folder, "--dry-run")
    assert done.returncode == code and "Traceback" not in done.stderr + done.stdout, done.stderr
    assert str(folder) in " ".join(done.stderr.split()).replace(" ", "") or "tiny" in done.stderr
