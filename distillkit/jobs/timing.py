"""Evaluations and speed of a generator that no protocol measures."""

from __future__ import annotations

import time

import torch

from distillkit.evaluation.generator import Generator
from distillkit.evaluation.sampling import seeded_noise
from distillkit.models.counting import count_evaluations

SECONDS, MOST = 3.0, 256
"""Batches are doubled until one takes so long, or holds so many samples."""


@torch.inference_mode()
def timed(generator: Generator, device: torch.device) -> tuple[float, float]:
    """(network evaluations of a sample, samples a second), both measured on this device."""
    with generator.denoiser.uneven(), generator.eager():
        return _timed(generator, device)


def _timed(generator: Generator, device: torch.device) -> tuple[float, float]:
    count = 1
    while True:
        seeds = list(range(count))
        noise = seeded_noise(seeds, generator.shape).to(device)
        condition = generator.conditioner.encode(generator.conditioner.in_turn(range(count))).to(device)
        generator.warm_up(noise, condition, seeds)
        with count_evaluations(*generator.denoisers) as evaluations:
            began = time.perf_counter()
            generator.generate(noise, condition, seeds)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
        if seconds > SECONDS or count >= MOST:
            return evaluations() / count, count / max(seconds, 1e-9)
        count = min(MOST, 4 * count)
