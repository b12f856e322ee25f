"""Tiny pipelines of diffusers with random weights, tokenizer included."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SCALED = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip


def tiny_tokenizer(folder: Path) -> Any:
    """Of letters and the two ends; 16 tokens at most."""
    folder.mkdir(parents=True)
    letters = list(string.ascii_lowercase)
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def tiny_text(tokenizer: Any, **changes: Any) -> Any:
    config: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 16, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1,
    }  # fmt: skip
    return CLIPTextConfig(**(config | changes))


def stable_diffusion(folder: Path, **scheduler: Any) -> Path:
    """The folder of a Stable Diffusion of 8 x 8 latents and 16 x 16 images; `scheduler` changes its DDIMScheduler."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(folder / "tokens")
    vae = AutoencoderKL(
        block_out_channels=[16, 32], norm_num_groups=8, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, sample_size=16,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, norm_num_groups=8, attention_head_dim=4,
    )  # fmt: skip
    made: Any = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(tiny_text(tokenizer)), tokenizer=tokenizer, unet=unet,
        scheduler=diffusers.DDIMScheduler(**(SCALED | scheduler)), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    made.save_pretrained(folder / "pipe")
    return folder / "pipe"
