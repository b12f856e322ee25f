"""`python -m benchmarks.speed.one_step --json FILE`: images/s of a one-step student of Stable Diffusion 1.5's shape.

End to end from token numbers to uint8 pictures of 512x512 on the device: text encoder, network once at t = 999, VAE;
together and each apart, in float16, for several batches, eager and compiled, contiguous and channels last. Weights are
random: speed does not depend on them. Without a GPU the embedded teacher's parts run instead, in float32.

It needs torch, diffusers and transformers, and nothing of distillkit but the embedded teacher's files.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

SHAPES = Path(__file__).parents[2] / "distillkit" / "embedded" / "shapes" / "pipeline"
PAPER_FPS = 20
SECONDS = 1.5
"""Of timing, each part of each case."""
GPU_CASES = (
    "1:eager", "16:eager", "16:compile:last", "1:compile:last", "32:compile:last", "8:compile:last", "16:eager:last",
    "16:compile",
)  # fmt: skip
CPU_CASES = ("1:eager", "16:eager", "16:eager:last")


@dataclass(frozen=True)
class Case:
    """What is timed: "BATCH:eager|compile[=MODE][:last]"; `last` is channels last."""

    batch: int
    compiled: bool
    mode: str
    last: bool

    @classmethod
    def read(cls, text: str) -> Case:
        batch, how, *rest = text.split(":")
        how, _, mode = how.partition("=")
        if how not in ("eager", "compile") or rest not in ([], ["last"]):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not BATCH:eager or BATCH:compile[=MODE], with or without :last"
            )
        return cls(int(batch), how == "compile", mode or "default", bool(rest))


@dataclass
class Parts:
    """The three networks of a student, and where its noise level puts the picture."""

    encoder: nn.Module
    network: nn.Module
    vae: nn.Module
    scaling: float
    length: int
    vocabulary: int
    latent: tuple[int, int, int]
    alpha: float
    sigma: float
    v: bool

    def modules(self) -> list[nn.Module]:
        return [self.encoder, self.network, self.vae]


class Decoder(nn.Module):
    """Latents (B, 4, H, W) -> pictures (B, 3, 8H, 8W) uint8."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        pictures = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def stable_diffusion(device: torch.device) -> Parts:
    """Stable Diffusion 1.5's shape, random weights, float16."""
    with torch.device(device):
        encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                projection_dim=768,
            )
        )
        network = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
        )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    parts = _parts(encoder, network, vae, scheduler, 77, (4, 64, 64))
    for module in parts.modules():
        module.half()
    return parts


def embedded(device: torch.device) -> Parts:
    """The embedded teacher `shapes`, float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(SHAPES).to(device)
    length = pipeline.tokenizer.model_max_length
    return _parts(pipeline.text_encoder, pipeline.unet, pipeline.vae, pipeline.scheduler, length, (4, 8, 8))


def _parts(
    encoder: CLIPTextModel, network: UNet2DConditionModel, vae: AutoencoderKL, scheduler: DDIMScheduler, length: int,
    latent: tuple[int, int, int],
) -> Parts:  # fmt: skip
    alpha = float(scheduler.alphas_cumprod[-1])
    parts = Parts(
        encoder, network, Decoder(vae), vae.config.scaling_factor, length, encoder.config.vocab_size, latent,
        alpha**0.5, (1 - alpha) ** 0.5, scheduler.config.prediction_type == "v_prediction",
    )  # fmt: skip
    for module in parts.modules():
        module.eval().requires_grad_(False)
    return parts


def actions(parts: Parts, case: Case, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """The three parts and the whole, as calls without arguments."""
    layout = torch.channels_last if case.last else torch.contiguous_format
    encoder, network, vae = (module.to(memory_format=layout) for module in parts.modules())
    if case.compiled:
        encoder, network, vae = (torch.compile(m, mode=case.mode, dynamic=False) for m in (encoder, network, vae))
    dtype = next(parts.network.parameters()).dtype
    tokens = torch.randint(parts.vocabulary, (case.batch, parts.length), device=device)
    noise = torch.randn(case.batch, *parts.latent, device=device, dtype=dtype).contiguous(memory_format=layout)
    t = torch.full((case.batch,), 999, device=device)

    def encode() -> Tensor:
        return encoder(tokens, return_dict=False)[0].clone()  # CUDA graphs write into the same memory again

    context = encode()

    def denoise(context: Tensor = context) -> Tensor:
        out = network(noise, t, context, return_dict=False)[0]
        return parts.alpha * noise - parts.sigma * out if parts.v else (noise - parts.sigma * out) / parts.alpha

    latents = denoise()

    def decode(latents: Tensor = latents) -> Tensor:
        return vae(latents)

    return {"text": encode, "network": denoise, "vae": decode, "whole": lambda: decode(denoise(encode()))}


def milliseconds(action: Callable[[], Tensor], rounds: int, seconds: float, device: torch.device) -> float:
    """Median over rounds of a call's time, after two calls; all rounds together take about `seconds`."""

    def timed(repeats: int) -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / repeats

    timed(2)
    repeats = max(1, round(seconds / rounds / timed(1)))
    return 1e3 * statistics.median(timed(repeats) for _ in range(rounds))


@torch.inference_mode()
def measure(parts: Parts, case: Case, rounds: int, device: torch.device) -> dict[str, Any]:
    """Times and throughput of one case, and what its first calls took."""
    began = time.perf_counter()
    calls = actions(parts, case, device)
    shape = list(calls["whole"]().shape)
    first = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = {name: milliseconds(call, rounds, SECONDS, device) for name, call in calls.items()}
    found = {
        **vars(case), "milliseconds": {name: round(value, 3) for name, value in times.items()},
        "images_per_second": round(1e3 * case.batch / times["whole"], 2), "pictures": shape,
        "first_calls_seconds": round(first, 1),
    }  # fmt: skip
    if device.type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


def hardware() -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("torch", "diffusers", "transformers", *(["triton"] if torch.cuda.is_available() else []))
    return {
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="written anew after each case")
    parser.add_argument("--cases", type=Case.read, nargs="+", help="BATCH:eager|compile[=MODE][:last] each")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case begins later than this")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    began, device = time.monotonic(), torch.device(given.device)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    gpu = device.type == "cuda"
    parts = stable_diffusion(device) if gpu else embedded(device)
    cases = given.cases or [Case.read(text) for text in (GPU_CASES if gpu else CPU_CASES)]
    result: dict[str, Any] = {
        "student": "Stable Diffusion 1.5's shape, random weights" if gpu else "the embedded teacher shapes",
        "dtype": str(next(parts.network.parameters()).dtype).removeprefix("torch."),
        "parameters": {
            name: sum(p.numel() for p in module.parameters())
            for name, module in zip(("text", "network", "vae"), parts.modules(), strict=True)
        },
        "environment": hardware(), "paper_images_per_second": PAPER_FPS, "cases": [], "not_measured": [],
    }  # fmt: skip
    for case in cases:
        if time.monotonic() - began > given.seconds:
            result["not_measured"].append({**vars(case), "why": f"later than --seconds {given.seconds:g}"})
            continue
        try:
            found = measure(parts, case, given.rounds, device)
        except RuntimeError as error:  # out of memory, or a compiler's
            result["not_measured"].append({**vars(case), "why": str(error).partition("\n")[0][:200]})
            continue
        finally:
            gc.collect()
        result["cases"].append(found)
        result["best"] = max(result["cases"], key=lambda each: each["images_per_second"])
        print(json.dumps(found), flush=True)
        if given.json:
            given.json.write_text(json.dumps(result, indent=2) + "\n")
    if not result["cases"]:
        raise SystemExit(f"no case could be measured: {json.dumps(result['not_measured'])}")


if __name__ == "__main__":
    main()
