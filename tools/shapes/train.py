"""`python -m tools.shapes.train --part classifier|vae|network --output FOLDER`: make the files of the teacher `shapes`.

The network needs the VAE in the same folder. On an H200 all three took six minutes; `--steps`, `--batch`, `--pictures`
and `--seconds` make it small enough for a CPU. What was interrupted goes on at its last checkpoint. Another device
makes other bits; python -m tools.shapes.evaluate says how good they are.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from distillkit.embedded.shapes.classifier import VALUES, WEIGHTS, ShapesCNN, readings
from distillkit.embedded.shapes.world import SINGLE, all_scenes, codes, draw_all, parse, sentence, shipped_prompts
from tools.shapes.loop import Plan, train
from tools.shapes.parts import (
    build_network,
    build_scheduler,
    build_text_encoder,
    build_vae,
    tokenize,
    write_pipeline,
    write_tokenizer,
)

SCALE_DRAWINGS = 10
"""Of every shipped prompt."""
KL_WEIGHT, EDGES_WEIGHT, DROPPED = 1e-3, 0.5, 0.1


@dataclass
class Job:
    """Where and with how much a part is trained."""

    output: Path
    device: torch.device
    plan: Plan
    batch: int
    pictures: int
    seed: int
    record: bool

    def generator(self, purpose: int) -> torch.Generator:
        """Of drawings on the job's device."""
        return torch.Generator(self.device).manual_seed(1000 * self.seed + purpose)

    def rows(self, count: int, below: int) -> Tensor:
        """Random numbers in [0, below), (count,)."""
        return torch.randint(below, (count,), device=self.device)


def random_scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scenes, a share SINGLE of one thing: their numbers in `all_scenes` (count,) and their codes (count, 9)."""
    described = codes(list(all_scenes())).to(generator.device)
    one = described[:, 0] == 0
    weights = torch.where(one, SINGLE / one.sum(), (1 - SINGLE) / (~one).sum())
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    return chosen, described[chosen]


def pictures_of(described: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 3, 32, 32) in [-1, 1], float16 to take little room."""
    return draw_all(described, generator).half() / 127.5 - 1


def train_classifier(job: Job) -> None:
    """Write shapescnn.safetensors, with its features' total standard deviation over drawings of the shipped prompts."""
    generator = job.generator(1)
    _, described = random_scenes(job.pictures, generator)
    pictures = pictures_of(described, generator)
    network = ShapesCNN().to(job.device)

    def loss() -> Tensor:
        rows = job.rows(job.batch, len(pictures))
        x = pictures[rows].float()
        each = torch.rand(2, job.batch, 1, 1, 1, device=job.device)
        x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 0.5 * each[0])
        x = x + 0.15 * each[1] * torch.randn_like(x)  # generators' pictures are neither sharp nor clean
        logits, answers = network(x).split(VALUES, dim=1), described[rows].unbind(1)
        return sum(F.cross_entropy(a, b, ignore_index=-1) for a, b in zip(logits, answers, strict=True))

    average = train(network, loss, job.plan, job.output / "classifier.state", record=job.record)
    tensors = {
        name: (value.half() if value.ndim > 1 else value).cpu().contiguous()
        for name, value in average.state_dict().items()
    }
    shipped = ShapesCNN().eval()
    shipped.load_state_dict(tensors)
    asked = codes([parse(text) for text in shipped_prompts()]).repeat(SCALE_DRAWINGS, 1)
    drawn = draw_all(asked, torch.Generator().manual_seed(job.seed))
    with torch.inference_mode():
        features = torch.cat([shipped.features(part.float() / 127.5 - 1) for part in drawn.split(1000)])
        whole = (readings(shipped.head(features)) == asked).all(1).double().mean().item()
    scale = torch.cov(features.double().T).trace().sqrt()
    card = {"name": "shapescnn/fc128", "whole": whole, "seed": job.seed, "torch": torch.__version__}
    metadata = {"card": json.dumps(card)}
    save_file({**tensors, "scale": scale.float()}, job.output / WEIGHTS, metadata=metadata)
    print(f"{whole:.4f} of {len(drawn):,} drawings are read wholly right; scale {scale:.3f}")


def train_vae(job: Job) -> None:
    """Write the VAE, in float32, with its scaling factor."""
    generator = job.generator(2)
    pictures = pictures_of(random_scenes(job.pictures, generator)[1], generator)
    vae = build_vae().to(job.device)

    def loss() -> Tensor:
        x = pictures[job.rows(job.batch, len(pictures))].float()
        moments = vae.encode(x).latent_dist
        difference = vae.decode(moments.mean + moments.std * torch.randn_like(moments.mean)).sample - x
        edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        kl = 0.5 * (moments.mean**2 + moments.var - 1 - moments.logvar).mean()
        return difference.abs().mean() + EDGES_WEIGHT * edges + KL_WEIGHT * kl

    average = train(vae, loss, job.plan, job.output / "vae.state", record=job.record)
    mean, std = encoded(average, pictures[:20_000])
    spread = torch.hypot(mean.float().std(), std.float().square().mean().sqrt()).item()
    average.register_to_config(scaling_factor=round(1 / spread, 4))
    average.save_pretrained(job.output / "vae")
    print(f"latents' standard deviation {spread:.3f}, of which noise {std.float().mean():.3f}")


@torch.inference_mode()
def encoded(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of latents, (N, 4, 8, 8) float16 each, not scaled."""
    parts = [vae.encode(part.float()).latent_dist for part in pictures.split(2048)]
    return torch.cat([part.mean.half() for part in parts]), torch.cat([part.std.half() for part in parts])


def train_network(job: Job) -> None:
    """Write the whole pipeline: text encoder and network trained together, prompts dropped one time in ten."""
    vae = AutoencoderKL.from_pretrained(job.output / "vae").to(job.device).eval().requires_grad_(False)
    if not (job.output / "tokenizer").is_dir():
        write_tokenizer(job.output / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(job.output / "tokenizer")
    generator = job.generator(3)
    numbers, described = random_scenes(job.pictures, generator)
    latents, noises = encoded(vae, pictures_of(described, generator))
    tokens = tokenize(tokenizer, [sentence(scene) for scene in all_scenes()]).to(job.device)
    empty = tokenize(tokenizer, [""]).to(job.device)
    alphas = build_scheduler().alphas_cumprod.to(job.device)[:, None, None, None]
    both = nn.ModuleDict({"encoder": build_text_encoder(), "network": build_network()}).to(job.device)
    scaling = vae.config.scaling_factor

    def loss() -> Tensor:
        rows, t = job.rows(job.batch, len(latents)), job.rows(job.batch, len(alphas))
        x = latents[rows].float()
        x = scaling * (x + noises[rows].float() * torch.randn_like(x))
        dropped = torch.rand(job.batch, 1, device=job.device) < DROPPED
        context = both["encoder"](torch.where(dropped, empty, tokens[numbers[rows]]))[0]
        noise, alpha, sigma = torch.randn_like(x), alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        v = both["network"](alpha * x + sigma * noise, t, context, return_dict=False)[0]
        return F.mse_loss(v, alpha * noise - sigma * x)

    average = train(both, loss, job.plan, job.output / "network.state", record=job.record)
    write_pipeline(job.output / "pipeline", tokenizer, average["encoder"], vae, average["network"])


PARTS = {
    "classifier": (train_classifier, Plan(2750, lr=2e-3, ema=0.998), 1024),
    "vae": (train_vae, Plan(5280, lr=1.5e-3, ema=0.999), 256),
    "network": (train_network, Plan(7280, lr=2e-3, ema=0.9995), 1024),
}
"""What trains a part, and the plan and the batch of the shipped files.

They were trained on an H200 with a limit in seconds (61, 110 and 190 s), which came to these steps.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the folder of all parts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=262_144, help="drawn before training, and used again and again")
    parser.add_argument("--eager", action="store_true", help="do not record steps as CUDA graphs")
    for name in ("steps", "seconds", "batch"):
        parser.add_argument(f"--{name}", type=int, help="at most" if name != "batch" else "pictures a step")
    given = parser.parse_args()
    action, plan, batch = PARTS[given.part]
    limits = {name: getattr(given, name) for name in ("steps", "seconds") if getattr(given, name)}
    plan = Plan(**{**vars(plan), **limits})
    torch.manual_seed(given.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    given.output.mkdir(parents=True, exist_ok=True)
    job = Job(
        given.output, torch.device(given.device), plan, given.batch or batch, given.pictures, given.seed,
        not given.eager,
    )  # fmt: skip
    action(job)


if __name__ == "__main__":
    main()
