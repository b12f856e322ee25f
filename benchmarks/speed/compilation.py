"""`python -m benchmarks.speed.compilation`: what torch.compile takes, of a whole network and of its repeated blocks.

A transformer of equal blocks (a DiT), and a teacher's network where one is named, by every kind of compilation in turn,
with no cache of earlier compilations: seconds until the first pass with its gradient is there, and of the passes after
it. On a CPU they are those of the processor, the compiler's among them, since a machine has other work too.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.utils import fresh_inductor_cache

from benchmarks.speed.timing import show, write
from distillkit import Condition, Denoiser, load_teacher
from distillkit.engine.preparation import checkpoint_gradients, compile_networks
from distillkit.models.build import build_denoiser

BATCH, ROUNDS = 8, 7
KINDS = ("off", "network", "blocks")


def transformer(layers: int) -> Denoiser:
    """A small DiT."""
    network = {
        "num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 4, "out_channels": 4, "num_layers": layers,
        "sample_size": 16, "patch_size": 2, "num_embeds_ada_norm": 10,
    }  # fmt: skip
    return build_denoiser(
        {"kind": "distillkit:DiTTransformer2DModel",
         "arguments": {"network": network, "schedule": {"kind": "flow"}, "prediction": "velocity"}}
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--teacher", help="a teacher whose network is measured too")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    # In this process: what others take would not be counted.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = {f"DiT of {options.layers} blocks": (transformer(options.layers), (4, 16, 16))}
    if options.teacher:
        teacher = load_teacher(options.teacher)
        cases[f"{teacher.spec.name}'s network"] = (teacher.copy_denoiser(), teacher.spec.shape)
    figures: dict[str, float] = {}
    found: dict[str, Any] = {}
    for name, (network, shape) in cases.items():
        found[name] = {kind: timed(network.to(device), shape, kind, device) for kind in KINDS}
        losses = [found[name][kind].pop("loss") for kind in KINDS]
        figures[f"{name}: loss, largest difference"] = max(abs(loss / losses[0] - 1) for loss in losses)
        first, later = ({kind: found[name][kind][what] for kind in KINDS} for what in ("first", "later"))
        figures[f"{name}: first pass, blocks / network"] = first["blocks"] / first["network"]
        figures |= {f"{name}: later passes, {kind} / off": later[kind] / later["off"] for kind in KINDS[1:]}
    show(f"compilation, batch {BATCH}, {device}", figures)
    print(json.dumps(found, indent=1))
    write(options.json, {"figures": figures, "seconds": found, "batch": BATCH})


def timed(network: Denoiser, shape: tuple[int, ...], kind: str, device: torch.device) -> dict[str, float]:
    """Seconds of the first pass with its gradient, and of a later one, with checkpointing as large networks have it."""
    torch._dynamo.reset()
    network = copy.deepcopy(network).eval()  # as in trainings: no labels are dropped
    checkpoint_gradients(network)
    if kind != "off":
        compile_networks([network], print, blocks=kind == "blocks")
    x = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    t, labels = torch.full((BATCH,), 0.5, device=device), torch.arange(BATCH, device=device)
    step = pass_of(network, x, t, Condition(labels=labels))
    # Kernels of one kind are found by another in a shared folder.
    with fresh_inductor_cache():
        first = step()
        later = statistics.median(step() for _ in range(ROUNDS))
    with torch.no_grad():
        loss = network(x, t, Condition(labels=labels)).square().mean().item()
    return {"first": first, "later": later, "loss": loss}


def seconds(device: torch.device) -> float:
    """The time: on a CPU that of the processor, with all that was started and has ended."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return sum(os.times()[:4])


def pass_of(network: Denoiser, x: Tensor, t: Tensor, condition: Condition) -> Callable[[], float]:
    """A pass with gradients; gives its seconds."""

    def step() -> float:
        began = seconds(x.device)
        network(x, t, condition).square().mean().backward()
        return seconds(x.device) - began

    return step


if __name__ == "__main__":
    main()
