"""Tiny random stand-ins for what others publish: a consistency pipeline, LoRAs and other weights of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, StableDiffusionPipeline, UNet2DModel
from diffusers import UNet2DConditionModel as ConditionalUNet
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from tests.models.pipelines import quiet, saved

TARGETS = ("to_q", "to_out.0", "proj_in", "conv1", "ff.net.2")


def consistency_pipeline(folder: Path, classes: int = 4) -> Path:
    """A ConsistencyModelPipeline of the form of openai/diffusers-cd_imagenet64_l2."""
    quiet()
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attn_norm_num_groups=8,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), downsample_type="resnet",
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), upsample_type="resnet", attention_head_dim=8,
        resnet_time_scale_shift="scale_shift", num_class_embeds=classes,
    )  # fmt: skip
    return saved(ConsistencyModelPipeline(unet=unet, scheduler=CMStochasticIterativeScheduler()), folder)


def write_replacements(folder: Path, name: str, pipeline: Path) -> None:
    """Beside each other: NAME_2step_unet.safetensors and NAME_4step_unet.bin, NAME-lora/ as diffusers writes it, and
    NAME-kohya.safetensors and .bin with the same LoRA, whose alpha is twice its rank."""
    unet = ConditionalUNet.from_pretrained(pipeline, subfolder="unet")
    weights = {key: 1.2 * value for key, value in unet.state_dict().items()}
    save_file(weights, folder / f"{name}_2step_unet.safetensors")
    torch.save(weights, folder / f"{name}_4step_unet.bin")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS), init_lora_weights=False)
    torch.manual_seed(3)
    unet.add_adapter(config)
    lora = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(
        folder / f"{name}-lora", unet_lora_layers=lora, unet_lora_adapter_metadata=config.to_dict()
    )
    save_file(kohya(lora), folder / f"{name}-kohya.safetensors")
    torch.save(kohya(lora), folder / f"{name}-kohya.bin")


def kohya(lora: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A LoRA as LCM-LoRA and Hyper-SD are published: other names, and alpha beside the weights."""
    made = {}
    for name, value in lora.items():
        module, _, part = name.partition(".lora_")
        key = f"lora_unet_{module.replace('.', '_')}"
        made[f"{key}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = value.contiguous().clone()
        made[f"{key}.alpha"] = torch.tensor(8.0)
    return made
