"""`python -m benchmarks.adapter_memory`: what a training holds where student and fake score are adapters of rank 64.

DMD on a network of Stable Diffusion's shape with 115 million parameters and random weights: the tensors that are held
(weights, gradients, moments, averages), each once, over the teacher's weights alone; and the same of the process'
memory, beside what it has before. Larger and other networks are counted, not held.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distillkit import Condition, Teacher, TeacherSpec
from distillkit.contracts.adapter import AdapterConfig, Base
from distillkit.contracts.denoiser import own_parameters
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.environment import environment
from distillkit.jobs.adapters import with_adapters
from distillkit.models.adapters import adapted, borrowed
from distillkit.models.build import build_denoiser
from distillkit.models.edm.families import describe_network
from distillkit.registry import registry
from distillkit.testing.parts import SmallLatents, SmallPrompts

RANK, STEPS, BATCH = 64, 2, 1
COPIES = 9
"""Of the adapters: three of weights (student, fake score, average), two of gradients and four of moments."""
UNET = {
    "block_out_channels": [192, 384, 768], "layers_per_block": 1, "sample_size": 8, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
VP = {"kind": "vp", "betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "offset": 1}


class Texts(SmallPrompts):
    """Prompts as wide as CLIP's."""

    def encode(self, keys: Tensor) -> Condition:
        condition = super().encode(keys)
        return condition.extended(text=condition["text"].repeat(1, 1, 192))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    began = time.monotonic()
    report = {"environment": environment(), "rank": RANK, "held": held(), "counted": counted()}
    report["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def held() -> dict[str, Any]:
    """Of a training after some steps, in bytes and in sizes of the teacher."""
    # What is loaded once, and by the first step of any training, is not this one's.
    trained(teacher_of({**UNET, "block_out_channels": [32, 64, 96]}))
    before = resident()
    teacher = teacher_of(UNET)
    denoiser = teacher.denoiser
    alone, weights = resident() - before, size(denoiser.parameters())
    trainer = trained(teacher)
    after = resident() - before
    parts = accounted(trainer)
    total = sum(parts.values())
    return {
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "adapter_parameters": sum(p.numel() for p in own_parameters(trainer.student)),
        "bytes": parts,
        "teacher_alone": weights,
        "total_over_teacher": round(total / weights, 3),
        "resident_teacher_alone": alone,
        "resident_after_steps": after,
        "resident_over_teacher": round(after / alone, 3),
        "in_full_over_teacher": 10.0,
    }


def teacher_of(network: Mapping[str, Any]) -> Teacher:
    denoiser = build_denoiser({"kind": "distillkit:UNet2DConditionModel", "arguments": arguments(network)})
    return Teacher(denoiser, TeacherSpec(name="unet", shape=(4, 8, 8)), Texts(), SmallLatents())


def trained(teacher: Teacher) -> Trainer:
    """A training by DMD after some steps."""
    kind, adapter = registry().method("dmd"), AdapterConfig(rank=RANK)
    settings = kind.Config.model_validate({"regression_weight": 0})
    recipe = with_adapters(lambda: kind().recipe(teacher, settings), teacher, adapter, adapter)
    training = TrainingConfig(batch=BATCH, duration=STEPS * BATCH, channels_last="off", gradient_checkpointing=True)
    trainer = Trainer(recipe, teacher, training, accelerator=Accelerator(cpu=True), seed=0)
    for _ in range(STEPS):
        trainer.train_step()
    return trainer


def accounted(trainer: Trainer) -> dict[str, int]:
    """Bytes of all tensors that are held while gradients are there, each storage once, by what they are."""
    seen: set[int] = set()
    recipe = trainer.recipe
    trained = [p for part in (trainer.student, *recipe.learners) for p in part.parameters() if p.requires_grad]
    states = [value for updater in trainer._updaters.values() for value in updater.optimizer.state.values()]
    return {
        "teacher": size(trainer.teacher.denoiser.parameters(), seen),
        "student": size(trainer.student.parameters(), seen),
        "average": size(trainer.ema.parameters(), seen),
        "learners": size((p for learner in recipe.learners for p in learner.parameters()), seen),
        "gradients": sum(p.numel() * p.element_size() for p in trained),
        "moments": size((value for state in states for value in state.values()), seen),
    }


def counted() -> dict[str, float]:
    """Weights, gradients, moments and average of networks by their shapes, over the teacher's weights."""
    sd = {**UNET, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
    sd["down_block_types"] = [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"]
    sd["up_block_types"] = ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]
    pixart = {
        "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
        "sample_size": 64, "patch_size": 2, "cross_attention_dim": 1152, "caption_channels": 4096,
    }  # fmt: skip
    networks = {
        "Stable Diffusion 1.5": {"kind": "distillkit:UNet2DConditionModel", "arguments": arguments(sd)},
        "PixArt-alpha": {"kind": "distillkit:PixArtTransformer2DModel", "arguments": arguments(pixart)},
        "EDM ImageNet 64 (attention and convolutions)": describe_network("adm", 64, 3, 1000),
    }
    return {name: round(of_shapes(described), 3) for name, described in networks.items()}


def of_shapes(described: Mapping[str, Any]) -> float:
    """1 + `COPIES` of the adapters over the weights, of a network that is never in memory."""
    with torch.device("meta"):
        network = build_denoiser(described)
        made = adapted(borrowed(network, Base(network, "0" * 64)), AdapterConfig(rank=RANK))
    return 1 + COPIES * sum(p.numel() for p in own_parameters(made)) / sum(p.numel() for p in network.parameters())


def arguments(network: Mapping[str, Any]) -> dict[str, Any]:
    return {"network": dict(network), "schedule": VP, "prediction": "epsilon"}


def size(tensors: Iterable[Tensor], seen: set[int] | None = None) -> int:
    """Bytes of tensors whose storage has not been seen."""
    seen, total = set() if seen is None else seen, 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def resident() -> int:
    """Bytes of memory that this process has and has not given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
