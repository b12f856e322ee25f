"""Writes the table of docs/cifar10-imagenet64.md: what DMD from EDM's teachers takes, by formula.

    python -m tools.edm_chain_table

Networks are built without weights; settings are those of the presets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from distillkit import Condition
from distillkit.counts import parse_count, scaled
from distillkit.data.files import size_text
from distillkit.diffusion.solvers import solver_evaluations
from distillkit.engine.cost import flop_counter
from distillkit.models.build import build_denoiser
from distillkit.models.store.resolve import cards
from distillkit.registry import registry
from tools.pages import rewrite

PAGE = Path(__file__).parents[1] / "docs" / "cifar10-imagenet64.md"
TOOL = "edm_chain_table"
TEACHERS = {"edm-cifar10-cond": "cifar10 conditional", "edm-imagenet64": "imagenet64"}
"""Presets of DMD by teacher."""
EQUIVALENTS = 11.0
"""Forward-equivalents of an image of DMD with the regression, as `run dmd --dry-run` counts them on the digits."""
RATE = 100e12
"""Floating-point operations a second that a GPU keeps up, by assumption."""
SAMPLES = 50_000


def facts(name: str) -> dict[str, str]:
    """What each step takes, by the step."""
    spec, preset = cards()[name].spec, _preset(TEACHERS[name])
    with torch.device("meta"), flop_counter() as counted:
        denoiser = build_denoiser(spec.network).eval()
        denoiser(torch.zeros(1, *spec.shape), torch.ones(1), Condition(labels=torch.zeros(1, dtype=torch.int64)))
    one, parameters = counted.get_total_flops(), sum(p.numel() for p in denoiser.parameters())
    count, steps = int(preset.pairs["count"]), int(preset.pairs.get("steps", spec.solver_steps))
    nfe, images = solver_evaluations(spec.solver, steps), int(parse_count(preset.training["duration"]))
    pairs, training = count * nfe, images * EQUIVALENTS
    teacher = SAMPLES * solver_evaluations(spec.solver, spec.solver_steps)
    return {
        "teacher, in float32": size_text(4 * parameters),
        "operations of one evaluation": scaled(one, "FLOP"),
        "pairs": f"{count:,}, {steps} Heun steps, NFE {nfe}",
        "evaluations for the pairs": f"{pairs / 1e6:,.1f} M",
        "pairs on the disk": size_text(count * (4 * math.prod(spec.shape) + 8)),
        "GPU hours for the pairs": _hours(pairs * one),
        "training": f"{images / 1e6:,.1f} M images, batch {preset.training['batch']}",
        "forward-equivalents of the training": f"{training / 1e6:,.0f} M",
        "GPU hours of the training": _hours(training * one),
        "weights, gradients and moments on a GPU": size_text(4 * parameters * (4 + 2 + 4)),
        "a checkpoint": f"about {size_text(4 * parameters * (3 + 4))}",
        "the student": size_text(4 * parameters),
        f"GPU hours for {SAMPLES:,} samples: teacher, student": f"{_hours(teacher * one)}, {_hours(SAMPLES * one)}",
    }


def _preset(name: str) -> Any:
    return next(preset for preset in registry().named("methods")["dmd"].value.presets if preset.name == name)


def _hours(operations: float) -> str:
    hours = operations / RATE / 3600
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def table() -> Iterator[str]:
    """The table, in Markdown."""
    columns = {name: facts(name) for name in TEACHERS}
    yield f"| | {' | '.join(f'`{name}`' for name in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for row in next(iter(columns.values())):
        yield f"| {row} | {' | '.join(found[row] for found in columns.values())} |"
    yield ""


def text() -> str:
    return "\n".join(table())


if __name__ == "__main__":
    rewrite(PAGE, TOOL, text())
