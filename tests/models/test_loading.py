"""Pipelines from all the files that they are saved as; parts that are loaded when they are needed, and freed."""

import gc
import json
import shutil
import weakref

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file, save_file

from distillkit import Condition, DistillkitError, UsageError, load_teacher
from tests.models import pipelines

WORDS = ["a red cat", ""]
FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return pipelines.sdxl(tmp_path_factory.mktemp("sdxl") / "tiny")


@torch.no_grad()
def outcome(folder, **asked):
    """Encodings, latents and images: what every part takes part in."""
    teacher = load_teacher(str(folder), **asked)
    condition = teacher.conditioner.encode(teacher.conditioner.parse(WORDS))
    noise = torch.randn(2, *teacher.spec.shape, generator=torch.Generator().manual_seed(1))
    latents = teacher.sample(noise, condition, steps=2, guidance=3.0)
    return {**condition, "latents": latents, "images": teacher.codec.images(latents)}


def assert_alike(found, expected, tolerance=0.0):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


def weights_in(folder):
    return [path for path in folder.glob("*/*.safetensors") if path.is_file()]


def test_parts_are_loaded_when_they_are_needed_and_freed(sdxl):
    teacher = load_teacher(str(sdxl))
    encoder, codec = teacher.conditioner.encoder, teacher.codec
    assert not encoder._models and not encoder._tokenizers and codec._model is None
    teacher.conditioner.parse(WORDS)
    assert encoder.too_long(["a" * 30, "a"]) == [0]
    assert not encoder._models and codec._model is None
    condition = teacher.conditioner.encode(teacher.conditioner.parse(WORDS))
    assert set(encoder._models) == {"text_encoder", "text_encoder_2"} and codec._model is None
    codec.decode(torch.randn(1, *teacher.spec.shape))
    parts = [weakref.ref(part) for part in (*encoder._models.values(), *encoder._tokenizers.values(), codec._model)]
    teacher.conditioner.release()
    codec.release()
    gc.collect()
    assert len(parts) == 5 and not [part for part in parts if part() is not None]
    again = teacher.conditioner.encode(teacher.conditioner.parse(WORDS))
    assert torch.equal(again["text"], condition["text"])
    assert not any(parameter.requires_grad for model in encoder._models.values() for parameter in model.parameters())


@pytest.mark.parametrize("build", [pipelines.stable_diffusion, pipelines.dit, pipelines.sd3], ids=lambda b: b.__name__)
def test_a_network_in_half_precision(build, tmp_path):
    folder = build(tmp_path / "tiny")
    teacher, half = load_teacher(str(folder)), load_teacher(str(folder), dtype=torch.bfloat16)
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.bfloat16}
    noise = torch.randn(2, *teacher.spec.shape)
    sampled = []
    for one in (teacher, half):
        condition = one.conditioner.encode(torch.tensor([0, 0]))
        assert condition.get("text", noise).dtype == torch.float32
        sampled.append(one.sample(noise, condition, steps=2))
    assert sampled[1].dtype == torch.float32 and not torch.equal(*sampled)
    # bfloat16 has eight bits: 0.4 % an operation.
    assert (sampled[1] - sampled[0]).abs().max() <= 0.1 * sampled[0].abs().max()
    if build is not pipelines.dit:
        assert {p.dtype for m in half.conditioner.encoder._models.values() for p in m.parameters()} == {torch.bfloat16}


def test_networks_that_compute_in_their_inputs_type_are_not_loaded_in_half_precision(sdxl):
    with pytest.raises(UsageError, match="mixture takes no weights in bfloat16"):
        load_teacher("mixture", dtype=torch.bfloat16)
    with pytest.raises(UsageError, match=r"torch\.int8.*torch\.bfloat16"):
        load_teacher(str(sdxl), dtype=torch.int8)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_variants_and_shards_of_every_part(sdxl, variant, shards, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(sdxl, torch_dtype=torch.float16 if variant else torch.float32)
    pipeline.save_pretrained(tmp_path / "other", variant=variant, **shards)
    named = [path.name for path in weights_in(tmp_path / "other")]
    assert all("fp16" in name for name in named) if variant else not any("fp16" in name for name in named)
    assert len(named) > 8 if shards else len(named) == 4
    assert_alike(outcome(tmp_path / "other"), outcome(sdxl), 0.02 if variant else 0.0)


@pytest.fixture
def both(sdxl, tmp_path):
    """A pipeline with weights in float32 and others, halved, as their bf16 variant; the autoencoder's are plain."""
    folder = tmp_path / "both"
    shutil.copytree(sdxl, folder)
    for path in weights_in(folder):
        if path.parent.name != "vae":
            halved = {name: value.to(torch.bfloat16) / 2 for name, value in load_file(path).items()}
            save_file(halved, path.with_name(f"{path.stem}.bf16.safetensors"), {"format": "pt"})
    return folder


def test_the_variant_of_the_type_is_preferred_and_said(sdxl, both, caplog):
    assert_alike(outcome(both), outcome(sdxl))
    assert not caplog.records
    teacher, plain = load_teacher(str(both), dtype=torch.bfloat16), load_teacher(str(both))
    [line] = [record.getMessage() for record in caplog.records]
    assert "the bf16 variant" in line and "bfloat16" in line
    halved = dict(teacher.denoiser.named_parameters())
    for name, value in plain.denoiser.named_parameters():
        assert torch.equal(halved[name], value.to(torch.bfloat16) / 2)
    assert teacher.spec.weights_sha256 != plain.spec.weights_sha256
    recorded = teacher.conditioner.encoder.parts.sha256
    assert "text_encoder/model.bf16.safetensors" in recorded and "text_encoder/model.safetensors" not in recorded
    teacher.conditioner.encode(teacher.conditioner.parse(WORDS))
    for name in ("text_encoder", "text_encoder_2"):
        [weight, *_] = teacher.conditioner.encoder._models[name].parameters()
        assert weight.dtype == torch.bfloat16 and weight.std() > 0
    assert "vae/diffusion_pytorch_model.safetensors" in teacher.codec.parts.sha256
    # What was recorded is read, whatever lies beside it: half the type alone is no reason for other files.
    encoder = plain.conditioner.hashed().encoder.in_dtype("bfloat16")
    kept = encoder.model(encoder.towers["first"]).state_dict()
    for name, value in load_file(both / "text_encoder" / "model.safetensors").items():
        if name in kept:
            assert torch.equal(kept[name], value.to(torch.bfloat16))


def test_a_variant_of_another_type_is_used_where_there_is_nothing_else(both, caplog):
    (both / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    teacher = load_teacher(str(both))
    assert next(teacher.denoiser.parameters()).dtype == torch.float32
    [line] = [record.getMessage() for record in caplog.records]
    assert "the bf16 variant" in line and "float32" in line


def test_parts_saved_by_torch_alone_are_read_without_running_them(tmp_path):
    expected = outcome(pipelines.stable_diffusion(tmp_path / "tiny"))
    for path in weights_in(tmp_path / "tiny"):
        name = "pytorch_model.bin" if path.parent.name == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    assert_alike(outcome(tmp_path / "tiny"), expected)


def save_with_former_names(path):
    """Attention layers as diffusers called them before its version 0.12; how many weights there are of them."""
    state, renamed = load_file(path), {}
    for name, value in state.items():
        former = next((name.replace(f".{new}.", f".{old}.") for new, old in FORMER.items() if f".{new}." in name), name)
        # The oldest are convolutions of one pixel.
        renamed[former] = value[:, :, None, None].contiguous() if former != name and value.ndim == 2 else value
    save_file(renamed, path)
    return len(renamed.keys() - state.keys())


def test_attention_layers_of_unets_by_their_former_names(tmp_path):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    unet.save_pretrained(tmp_path)
    DDPMScheduler().save_pretrained(tmp_path)
    x, t = torch.randn(2, 3, 8, 8), torch.full((2,), 400.0)
    expected = load_teacher(str(tmp_path))(x, t, Condition())
    assert save_with_former_names(tmp_path / "diffusion_pytorch_model.safetensors") == 32
    assert torch.equal(load_teacher(str(tmp_path))(x, t, Condition()), expected)


def test_attention_layers_of_autoencoders_by_their_former_names(tmp_path):
    folder = pipelines.stable_diffusion(tmp_path / "tiny")
    expected = outcome(folder)
    assert save_with_former_names(folder / "vae" / "diffusion_pytorch_model.safetensors") == 16
    # Text encoders of that time hold the numbers of their positions too.
    path = folder / "text_encoder" / "model.safetensors"
    save_file({**load_file(path), "text_model.embeddings.position_ids": torch.arange(16)[None]}, path)
    assert_alike(outcome(folder), expected)


def test_gradients_pass_through_the_decoder(tmp_path):
    teacher = load_teacher(str(pipelines.stable_diffusion(tmp_path / "tiny")))
    latents = torch.randn(2, *teacher.spec.shape, requires_grad=True)
    images = teacher.codec.images(latents)
    weight = torch.randn_like(images)
    (images * weight).sum().backward()
    step = torch.randn_like(latents)
    with torch.no_grad():
        ends = [(teacher.codec.images(latents + sign * 1e-2 * step) * weight).sum() for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / 2e-2
    assert (latents.grad * step).sum() == pytest.approx(slope.item(), rel=0.02)
    assert all(parameter.grad is None for parameter in teacher.codec._model.parameters())


def test_latents_and_back(tmp_path):
    """What is subtracted on the way in is added on the way out."""
    spread = {"scaling_factor": 1.7, "shift_factor": 0.4}
    teacher = load_teacher(str(pipelines.sd3(tmp_path / "tiny", autoencoder=spread)))
    codec, images = teacher.codec, torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    latents = codec.encode(images)
    mean = codec._model.encode(images / 127.5 - 1).latent_dist.mode()
    torch.testing.assert_close(latents, (mean - 0.4) * 1.7)
    torch.testing.assert_close(codec.images(latents), codec._model.decode(mean).sample, rtol=1e-4, atol=1e-5)
    assert codec.decoded_shape(teacher.spec.shape) == (3, 16, 16) and codec.encoded_shape((3, 16, 16)) == (4, 8, 8)


HUB = [
    "model_index.json", "README.md", "big_single_file.safetensors", "scheduler/scheduler_config.json",
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin", "unet/openvino_model.xml",
    "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.bin",
    "vae_1_0/diffusion_pytorch_model.safetensors", "vae_decoder/model.onnx",
    "text_encoder/config.json", "text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json", "text_encoder_2/model-00001-of-00002.safetensors",
    "text_encoder_2/model-00002-of-00002.safetensors", "text_encoder_2/model.safetensors.index.json",
    "text_encoder_2/model.fp16-00001-of-00002.safetensors", "text_encoder_2/flax_model.msgpack",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
    "tokenizer_2/spiece.model", "tokenizer_2/tokenizer.json",
    "safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json",
]  # fmt: skip
WANTED = {
    "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/config.json", "text_encoder/pytorch_model.bin",
    "text_encoder_2/config.json", "text_encoder_2/model-00001-of-00002.safetensors",
    "text_encoder_2/model-00002-of-00002.safetensors", "text_encoder_2/model.safetensors.index.json",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
    "tokenizer_2/spiece.model", "tokenizer_2/tokenizer.json",
}  # fmt: skip


@pytest.fixture
def hub_with(monkeypatch):
    """Stands in for the hub: a listing, and a folder as what is downloaded; gives the patterns that were asked for."""
    asked = []

    def stand_in(names, folder):
        def snapshot_download(name, revision=None, allow_patterns=None, local_files_only=False):
            if local_files_only:
                raise FileNotFoundError
            asked.append(allow_patterns)
            return str(folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name, revision=None: names)
        return asked

    return stand_in


def test_one_variant_of_every_part_is_downloaded_and_nothing_else(hub_with, tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    folder = pipelines.sdxl(tmp_path / "models--org--tiny" / "snapshots" / "abc")
    asked = hub_with(HUB, folder)
    teacher = load_teacher("hf:org/tiny")
    assert set(filter_repo_objects(HUB, allow_patterns=asked[0])) == WANTED
    # Its parts are found again by the same revision, whatever the hub has by then.
    assert {teacher.conditioner.encoder.parts.source, teacher.codec.parts.source} == {"hf:org/tiny@abc"}


def test_the_variant_of_the_type_is_downloaded(hub_with, tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    folder = pipelines.sdxl(tmp_path / "models--org--tiny" / "snapshots" / "abc")
    plain = "vae/diffusion_pytorch_model.safetensors"
    names = [*HUB, plain]
    asked = hub_with(names, folder)
    teacher = load_teacher("hf:org/tiny", dtype=torch.float16)
    got = set(filter_repo_objects(names, allow_patterns=asked[0]))
    halves = {"unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"}
    assert {name for name in got if "fp16" in name} == halves
    assert {name for name in got if name.startswith("vae/")} == {"vae/config.json", plain}
    assert "unet/diffusion_pytorch_model.safetensors" not in got
    asked.clear()
    teacher.conditioner.encode(teacher.conditioner.parse(WORDS))
    got = [set(filter_repo_objects(HUB, allow_patterns=patterns)) for patterns in asked]
    assert got and not any(name.startswith("unet/diffusion") or "fp16" in name for names in got for name in names)


def test_what_describes_a_pipeline_is_downloaded_without_weights(hub_with, tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    from distillkit.models.store.resolve import resolve

    folder = pipelines.sd3(tmp_path / "models--org--tiny" / "snapshots" / "abc")
    for path in weights_in(folder):
        path.unlink()
    asked = hub_with([f"transformer/{name.partition('/')[2]}" if "unet" in name else name for name in HUB], folder)
    teacher = resolve("hf:org/tiny").fresh(0)
    assert (
        teacher.spec.shape == (4, 8, 8)
        and teacher.denoiser(
            torch.randn(1, 4, 8, 8), torch.ones(1), Condition(text=torch.randn(1, 9, 48), pooled=torch.randn(1, 40))
        )
        .isfinite()
        .all()
    )
    assert all(name.endswith(".json") for name in filter_repo_objects(HUB, allow_patterns=asked[0]))


def test_parts_that_were_changed_since_are_refused(tmp_path):
    folder = pipelines.stable_diffusion(tmp_path / "tiny")
    teacher = load_teacher(str(folder))
    pipelines.change(folder / "vae" / "config.json", scaling_factor=0.5)
    with pytest.raises(DistillkitError, match=r"vae/config\.json is another file"):
        teacher.codec.decode(torch.randn(1, *teacher.spec.shape))
    assert json.loads(teacher.spec.model_dump_json())["codec"]["scaling"] == 0.18215
