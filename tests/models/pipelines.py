"""Tiny random pipelines of diffusers, tokenizers and all, as they are saved; made in well under a second each."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.utils import logging as transformers_logging

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
DDIM = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False,
}  # fmt: skip


def quiet() -> None:
    """No progress bars of either library for the rest of the process."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    diffusers_logging.set_verbosity_error()


def clip_tokenizer(folder: Path, length: int = 16) -> CLIPTokenizer:
    """Letters as tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: k for k, token in enumerate([*LETTERS, *(f"{c}</w>" for c in LETTERS), *ends])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length)


def clip(tokenizer: CLIPTokenizer, width: int = 32, *, projected: int = 0, layers: int = 2, **changes: Any) -> Any:
    vocabulary = tokenizer.get_vocab()
    config = CLIPTextConfig(
        **{
            "vocab_size": len(vocabulary), "hidden_size": width, "intermediate_size": 37, "num_hidden_layers": layers,
            "num_attention_heads": 4, "max_position_embeddings": tokenizer.model_max_length, "pad_token_id": 1,
            "bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"],
            "projection_dim": projected or 512, **changes,
        }
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5(width: int = 32) -> tuple[T5Tokenizer, T5EncoderModel]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return tokenizer, T5EncoderModel(config)


def vae(**changes: Any) -> AutoencoderKL:
    """Two pixels of an image for one of a latent."""
    return AutoencoderKL(
        **{
            "block_out_channels": [8, 16], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4, "sample_size": 16, **changes,
        }
    )  # fmt: skip


def scheduler(name: str, **options: Any) -> Any:
    kind = getattr(diffusers, f"{name}Scheduler")
    known = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in options.items() if key in known})


def saved(pipeline: Any, folder: Path) -> Path:
    """The pipeline in a folder, with random numbers also where networks begin with zeros."""
    generator = torch.Generator().manual_seed(7)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.save_pretrained(folder)
    return folder


UNET = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32, "norm_num_groups": 8, "attention_head_dim": 4,
}  # fmt: skip


def stable_diffusion(
    folder: Path, noise: str = "DDIM", options: dict[str, Any] | None = None, autoencoder: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None, **network: Any,
) -> Path:  # fmt: skip
    """StableDiffusionPipeline: one CLIP."""
    quiet()
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder.parent / f"{folder.name}-words")
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae(**(autoencoder or {})), text_encoder=clip(tokenizer, **(text or {})), tokenizer=tokenizer,
        unet=UNet2DConditionModel(**{**UNET, **network}), scheduler=scheduler(noise, **{**DDIM, **(options or {})}),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return saved(pipeline, folder)


def sdxl(
    folder: Path, noise: str = "EulerDiscrete", options: dict[str, Any] | None = None,
    autoencoder: dict[str, Any] | None = None, zeros: bool = True, first: bool = True, **network: Any,
) -> Path:  # fmt: skip
    """StableDiffusionXLPipeline: two CLIPs of other widths, and sizes."""
    quiet()
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder.parent / f"{folder.name}-words")
    unet = {
        **UNET, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "cross_attention_dim": 48 if first else 16,
        "projection_class_embeddings_input_dim": 6 * 8 + 24, "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True, "attention_head_dim": (2, 4), **network,
    }  # fmt: skip
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae(**(autoencoder or {})),
        text_encoder=clip(tokenizer, 32) if first else None, tokenizer=tokenizer if first else None,
        text_encoder_2=clip(tokenizer, 16, projected=24, layers=3), tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(**unet), scheduler=scheduler(noise, **{**DDIM, **(options or {})}),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip
    return saved(pipeline, folder)


TRANSFORMER = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3,
    "sample_size": 8, "patch_size": 2, "norm_num_groups": 4,
}  # fmt: skip


def dit(
    folder: Path, noise: str = "DDIM", options: dict[str, Any] | None = None,
    autoencoder: dict[str, Any] | None = None, **network: Any,
) -> Path:  # fmt: skip
    """DiTPipeline: 1,000 classes, as it takes for granted, and a variance beside the noise."""
    quiet()
    torch.manual_seed(0)
    linear = {"beta_schedule": "linear", "clip_sample": False, **(options or {})}
    pipeline = diffusers.DiTPipeline(
        transformer=DiTTransformer2DModel(**{**TRANSFORMER, **network}), vae=vae(**(autoencoder or {})),
        scheduler=scheduler(noise, **linear),
    )  # fmt: skip
    return saved(pipeline, folder)


def pixart(
    folder: Path, sigma: bool = False, noise: str = "DDIM", options: dict[str, Any] | None = None,
    autoencoder: dict[str, Any] | None = None, **network: Any,
) -> Path:  # fmt: skip
    """PixArtAlphaPipeline or PixArtSigmaPipeline: T5 with a mask."""
    quiet()
    torch.manual_seed(0)
    tokenizer, text_encoder = t5()
    own = {**TRANSFORMER, "cross_attention_dim": 16, "caption_channels": 32, **network}
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    pipeline = kind(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae(**(autoencoder or {})),
        transformer=PixArtTransformer2DModel(**own),
        scheduler=scheduler(noise, **{"beta_schedule": "linear", "clip_sample": False, **(options or {})}),
    )  # fmt: skip
    return saved(pipeline, folder)


def sd3(
    folder: Path, third: bool = True, options: dict[str, Any] | None = None,
    autoencoder: dict[str, Any] | None = None, **network: Any,
) -> Path:  # fmt: skip
    """StableDiffusion3Pipeline: two CLIPs, and T5 behind them."""
    quiet()
    torch.manual_seed(0)
    words = clip_tokenizer(folder.parent / f"{folder.name}-words")
    tokenizer, text_encoder = t5(48) if third else (None, None)
    own = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 48,
        "caption_projection_dim": 16, "pooled_projection_dim": 40,
        "pos_embed_max_size": 12, **network,
    }  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**own), vae=vae(**{**FLOW_VAE, **(autoencoder or {})}),
        scheduler=scheduler("FlowMatchEulerDiscrete", **{"shift": 3.0, **(options or {})}),
        text_encoder=clip(words, 16, projected=16), tokenizer=words,
        text_encoder_2=clip(words, 24, projected=24, layers=3), tokenizer_2=words,
        text_encoder_3=text_encoder, tokenizer_3=tokenizer,
    )  # fmt: skip
    return saved(pipeline, folder)


def flux(
    folder: Path, guided: bool = True, options: dict[str, Any] | None = None,
    autoencoder: dict[str, Any] | None = None, **network: Any,
) -> Path:  # fmt: skip
    """FluxPipeline: CLIP and T5; packed latents; embedded guidance as FLUX.1-dev's, or none as -schnell's."""
    quiet()
    torch.manual_seed(0)
    words = clip_tokenizer(folder.parent / f"{folder.name}-words")
    tokenizer, text_encoder = t5(32)
    own = {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 24, "axes_dims_rope": (4, 4, 8), "guidance_embeds": guided,
        **network,
    }  # fmt: skip
    dynamic = {"use_dynamic_shifting": guided, "shift": 3.0 if guided else 1.0, **(options or {})}
    pipeline = diffusers.FluxPipeline(
        transformer=FluxTransformer2DModel(**own), vae=vae(**{**FLOW_VAE, **(autoencoder or {})}),
        scheduler=scheduler("FlowMatchEulerDiscrete", **dynamic), text_encoder=clip(words, 24), tokenizer=words,
        text_encoder_2=text_encoder, tokenizer_2=tokenizer,
    )  # fmt: skip
    return saved(pipeline, folder)


FLOW_VAE = {
    "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


def change(path: Path, **values: Any) -> None:
    """Other values in a JSON file; ... removes one."""
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
