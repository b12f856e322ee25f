"""Writes the tables of docs/long-runs.md: what networks of three sizes take on many devices, by the plan's formulas.

    python -m tools.long_run_tables

Networks are built without weights, as diffusers describes those models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn

from distillkit import Denoiser
from distillkit.counts import scaled
from distillkit.engine.spreading import activation_bytes, network_of
from distillkit.parallel.expected import Network, Passes, Spread, StrategyName, expected
from tools.pages import rewrite

PAGE = Path(__file__).parents[1] / "docs" / "long-runs.md"
TOOL = "long_run_tables"
MACHINE = 8
LAYOUTS: tuple[tuple[StrategyName, int], ...] = (("replicate", 8), ("shard", 8), ("hybrid", 64), ("shard", 64))
PASSES = {"student": Passes(1, 1), "average": Passes(), "fake_score": Passes(2, 1), "teacher": Passes(1, 0)}
"""Of DMD in a step of one micro-batch."""


class Bare(Denoiser):
    """A network by its weights alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any, t: Any, condition: Any) -> Any:
        raise NotImplementedError("it has no weights")


def sd15() -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    model = UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, down_block_types=(down, down, down, "DownBlock2D"),
        up_block_types=("UpBlock2D", up, up, up), block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
        cross_attention_dim=768, attention_head_dim=8,
    )  # fmt: skip
    return model, lambda one: one(torch.zeros(1, 4, 64, 64), torch.ones(1), torch.zeros(1, 77, 768))


def sdxl() -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    model = UNet2DConditionModel(
        sample_size=128, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", down, down),
        up_block_types=(up, up, "UpBlock2D"), block_out_channels=(320, 640, 1280), layers_per_block=2,
        cross_attention_dim=2048, attention_head_dim=[5, 10, 20], transformer_layers_per_block=[1, 2, 10],
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip

    def evaluate(one: nn.Module) -> Any:
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        return one(
            torch.zeros(1, 4, 128, 128), torch.ones(1), torch.zeros(1, 77, 2048), added_cond_kwargs=added
        )  # fmt: skip

    return model, evaluate


def flow12b() -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    def evaluate(one: nn.Module) -> Any:
        return one(
            hidden_states=torch.zeros(1, 4096, 64), encoder_hidden_states=torch.zeros(1, 512, 4096),
            pooled_projections=torch.zeros(1, 768), timestep=torch.ones(1), guidance=torch.ones(1),
            img_ids=torch.zeros(4096, 3), txt_ids=torch.zeros(512, 3),
        )  # fmt: skip

    return FluxTransformer2DModel(guidance_embeds=True), evaluate


MODELS = {
    "Stable Diffusion 1.5 (512 pixels)": sd15,
    "Stable Diffusion XL (1,024 pixels)": sdxl,
    "A flow model of 12B, as FLUX.1-dev (1,024 pixels)": flow12b,
}


def tables() -> str:
    """All tables, in Markdown."""
    return "\n".join(line for title, build in MODELS.items() for line in table(title, build))


def table(title: str, build: Callable[[], tuple[nn.Module, Callable[[nn.Module], Any]]]) -> Iterator[str]:
    """One model's table."""
    with torch.device("meta"):
        model, evaluate = build()
        # Half of what is kept in float32: passes are in bfloat16.
        activations = activation_bytes(model, lambda: evaluate(model)) / 2
        denoiser = Bare(model)
    networks = list(_networks(denoiser))
    parameters = sum(p.numel() for p in model.parameters())
    yield (
        f"**{title}**: {parameters / 1e6:,.0f} million parameters; a pass of one sample keeps "
        f"{scaled(activations, 'B')} of activations, without `--gradient-checkpointing`.\n"
    )
    columns = ("weights", "gradients", "moments", "blocks in use", "together", "sent in a step")
    yield f"| strategy | devices | {' | '.join(columns)} |"
    yield "|---|---:" + "|---:" * len(columns) + "|"
    for name, devices in LAYOUTS:
        spread = Spread.of(name, devices, MACHINE)
        found = expected(networks, spread)
        shown = [found.held.weights, found.held.gradients, found.held.moments, found.gathered, found.memory, found.sent]
        how = f"{spread.copies} x {spread.sharing}" if name == "hybrid" else str(devices)
        yield f"| {name} | {how} | {' | '.join(scaled(value, 'B') if value else '' for value in shown)} |"
    yield ""


def _networks(denoiser: Denoiser) -> Iterator[Network]:
    for name, passes in PASSES.items():
        trained = name in ("student", "fake_score")
        denoiser.requires_grad_(trained)
        half = torch.bfloat16 if name == "fake_score" else None
        yield network_of(name, denoiser, passes, float(trained), optimizer="adamw", half=half)


if __name__ == "__main__":
    rewrite(PAGE, TOOL, tables())
