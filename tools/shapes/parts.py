"""The networks and the tokenizer of the teacher `shapes`, untrained, and the pipeline's folder that they are put into.

A folder of plain diffusers: `StableDiffusionPipeline.from_pretrained` loads it. This needs diffusers and transformers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from distillkit.embedded.shapes.world import SIDE, WORDS

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
LENGTH = 24
"""Tokens of a prompt at most; the longest sentence has fourteen, start and end included."""
WIDTH = 96
LATENT = (4, 8, 8)


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer whose tokens are the grammar's words, into a new `folder`.

    Words are tokens added to a vocabulary without any pair to merge, so any other word falls apart into letters that
    are not known, each of them the unknown token. All CLIPTokenizers read it, slow ones and those of transformers 5;
    the slow ones of transformers 4 know words in small letters only.
    """
    folder.mkdir(parents=True)
    special = (START, END, UNKNOWN)
    vocabulary = {word: number for number, word in enumerate((*special, *WORDS))}
    added = {
        str(number): {
            "content": word, "lstrip": False, "rstrip": False, "single_word": word not in special,
            "normalized": word not in special, "special": word in special,
        }
        for word, number in vocabulary.items()
    }  # fmt: skip
    names = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": UNKNOWN}
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    write_json(folder / "special_tokens_map.json", names)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True,
         "add_prefix_space": False, **names, "added_tokens_decoder": added},
    )  # fmt: skip


def write_json(path: Path, value: object) -> None:
    """Indented, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def tokenize(tokenizer: CLIPTokenizer, sentences: list[str]) -> Tensor:
    """Token numbers (N, 24) int64, as the pipeline makes them."""
    options = {"padding": "max_length", "max_length": LENGTH, "truncation": True, "return_tensors": "pt"}
    return tokenizer(sentences, **options).input_ids


def build_text_encoder() -> CLIPTextModel:
    """Token numbers (B, 24) -> (B, 24, 96); two layers, 0.2 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=3 + len(WORDS), hidden_size=WIDTH, intermediate_size=2 * WIDTH, projection_dim=WIDTH,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LENGTH,
            bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip


def build_vae() -> AutoencoderKL:
    """Pictures (B, 3, 32, 32) in [-1, 1] <-> latents (B, 4, 8, 8); 0.8 M parameters."""
    return AutoencoderKL(
        block_out_channels=(32, 48, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=LATENT[0], norm_num_groups=8,
        sample_size=SIDE, force_upcast=False,
    )  # fmt: skip


def build_network() -> UNet2DConditionModel:
    """Latents (B, 4, 8, 8), time steps and encodings (B, 24, 96) -> v (B, 4, 8, 8); 1.1 M parameters."""
    return UNet2DConditionModel(
        sample_size=LATENT[1], in_channels=LATENT[0], out_channels=LATENT[0], block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2, layers_per_block=1,
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip


def build_scheduler() -> DDIMScheduler:
    """The noise schedule.

    Stable Diffusion's form of betas, ending higher: alpha(999) is 0.015, so that pure noise is nearly what the network
    saw at t = 999 and the picture's mean does not leak, but not zero, because one-step students start there.
    """
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.02,
        prediction_type="v_prediction", timestep_spacing="trailing", set_alpha_to_one=True, steps_offset=1,
        clip_sample=False, rescale_betas_zero_snr=False,
    )  # fmt: skip


def write_pipeline(
    folder: Path, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, vae: AutoencoderKL, network: UNet2DConditionModel
) -> None:
    """Write all parts, which become float16, as a StableDiffusionPipeline, into a new `folder`."""
    for part in (encoder, vae, network):
        part.to("cpu", torch.float16)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=network, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(folder / "tokenizer")  # transformers 5 leaves out what earlier ones read
    write_tokenizer(folder / "tokenizer")
    _make_readable_by_all_releases(folder / "text_encoder")
    path = folder / "vae" / "config.json"  # which says where the VAE was read from
    write_json(path, {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k != "_name_or_path"})
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def _make_readable_by_all_releases(folder: Path) -> None:
    """Change a text encoder that transformers 5 wrote so that earlier releases read it, and later ones in float32.

    The names of weights begin with "text_model.", which transformers 5 leaves out. The configuration says float32:
    transformers 5 would otherwise compute in the file's float16, while diffusers loads its own parts in float32.
    """
    weights, path = folder / "model.safetensors", folder / "config.json"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "dtype": "float32", "torch_dtype": "float32"})
