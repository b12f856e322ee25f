"""`python -m tools.shapes.train_classifier --output FOLDER`: make the classifier `shapescnn` of the teacher `shapes`.

The pipeline itself is trained by `distillkit teachers train shapes`. On an H200 this took a minute; `--steps`,
`--batch`, `--pictures` and `--seconds` make it small enough for a CPU. What was interrupted goes on at its last
checkpoint. Another device makes other bits; what is printed in the end says how good they are.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from distillkit.embedded.shapes.classifier import VALUES, WEIGHTS, ShapesCNN, readings
from distillkit.embedded.shapes.world import SINGLE, all_scenes, codes, draw_all, parse, shipped_prompts
from tools.shapes.loop import Plan, train

SCALE_DRAWINGS = 10
"""Of every shipped prompt."""
PLAN, BATCH = Plan(2750, lr=2e-3, ema=0.998), 1024
"""Of the shipped file, which was trained on an H200 with a limit of 61 seconds that came to these steps."""


@dataclass
class Job:
    """Where and with how much the classifier is trained."""

    output: Path
    device: torch.device
    plan: Plan
    batch: int
    pictures: int
    seed: int
    record: bool


def random_scenes(count: int, generator: torch.Generator) -> Tensor:
    """Codes (count, 9) of scenes, a share SINGLE of them of one thing."""
    described = codes(list(all_scenes())).to(generator.device)
    one = described[:, 0] == 0
    weights = torch.where(one, SINGLE / one.sum(), (1 - SINGLE) / (~one).sum())
    return described[torch.multinomial(weights, count, replacement=True, generator=generator)]


def train_classifier(job: Job) -> None:
    """Write shapescnn.safetensors, with its features' total standard deviation over drawings of the shipped prompts."""
    generator = torch.Generator(job.device).manual_seed(1000 * job.seed + 1)
    described = random_scenes(job.pictures, generator)
    # In float16 they take little room.
    pictures = draw_all(described, generator).half() / 127.5 - 1
    network = ShapesCNN().to(job.device)

    def loss() -> Tensor:
        rows = torch.randint(len(pictures), (job.batch,), device=job.device)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the file, and of what is needed to go on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=262_144, help="drawn before training, and used again and again")
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures a step")
    parser.add_argument("--eager", action="store_true", help="do not record steps as CUDA graphs")
    for name in ("steps", "seconds"):
        parser.add_argument(f"--{name}", type=int, help="at most")
    given = parser.parse_args()
    limits = {name: getattr(given, name) for name in ("steps", "seconds") if getattr(given, name)}
    torch.manual_seed(given.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    given.output.mkdir(parents=True, exist_ok=True)
    plan = Plan(**{**vars(PLAN), **limits})
    device = torch.device(given.device)
    train_classifier(Job(given.output, device, plan, given.batch, given.pictures, given.seed, not given.eager))


if __name__ == "__main__":
    main()
