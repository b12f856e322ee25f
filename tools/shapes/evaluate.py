"""`python -m tools.shapes.evaluate PIPELINE`: alignment of a pipeline of shapes, in plain diffusers.

Real pictures, pictures through the VAE, and the pipeline's with several guidances, for the shipped prompts. PIPELINE is
the shipped folder, or RUN/network/teacher of `distillkit teachers train shapes`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from distillkit.embedded.shapes.classifier import ShapesCNN, agreement, shapes_cnn
from distillkit.embedded.shapes.world import Scene, codes, draw_all, parse, shipped_prompts

BATCH = 500


def alignment(classifier: ShapesCNN, pictures: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Means over scenes, and the standard error of the first, of pictures (N, 3, 32, 32) in [-1, 1]."""
    with torch.inference_mode():
        shares = agreement(torch.cat([classifier(part) for part in pictures.split(BATCH)]), scenes)
    error = (shares["all"].std() / len(scenes) ** 0.5).item()
    return {**{name: round(values.nanmean().item(), 4) for name, values in shares.items()}, "error": round(error, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--steps", type=int, nargs="+", default=[30])
    parser.add_argument("--count", type=int, default=2000, help="of the shipped prompts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    prompts = shipped_prompts()[: given.count]
    scenes = [parse(text) for text in prompts]
    classifier = shapes_cnn()[0].to(given.device)
    pipeline = StableDiffusionPipeline.from_pretrained(given.pipeline).to(given.device)
    pipeline.set_progress_bar_config(disable=True)
    real = draw_all(codes(scenes), torch.Generator().manual_seed(1)).to(given.device).float() / 127.5 - 1
    with torch.inference_mode():
        through = torch.cat([pipeline.vae(part, return_dict=False)[0] for part in real.split(BATCH)])
    figures = {
        "real": alignment(classifier, real, scenes),
        "through the VAE": alignment(classifier, through.clamp(-1, 1), scenes),
    }
    for guidance in given.guidance:
        for steps in given.steps:
            generator, made = torch.Generator(given.device).manual_seed(0), []
            for start in range(0, len(prompts), BATCH):
                images = pipeline(
                    prompts[start : start + BATCH], num_inference_steps=steps, guidance_scale=guidance,
                    generator=generator, output_type="pt",
                ).images  # fmt: skip
                made.append(images.float() * 2 - 1)
            figures[f"guidance {guidance:g}, {steps} steps"] = alignment(classifier, torch.cat(made), scenes)
    for name, values in figures.items():
        print(f"{name}: {json.dumps(values)}", flush=True)
    if given.json:
        versions = {name: version(name) for name in ("torch", "diffusers", "transformers")}
        device = torch.cuda.get_device_name() if given.device != "cpu" else "cpu"
        whole = {"sentences": len(prompts), "figures": figures, "device": device, "versions": versions}
        given.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
