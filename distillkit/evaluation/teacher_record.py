"""The teacher's own figures, which need not be measured twice: kept under the hash of all that they depend on."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from pydantic import ValidationError

from distillkit.contracts.teacher import Teacher
from distillkit.diffusion.solvers import SolverName
from distillkit.errors import DistillkitError
from distillkit.evaluation.generator import Generator, teacher_generator
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.pipeline import alone, fitted, measure
from distillkit.evaluation.record import Record, read_record, write_record
from distillkit.evaluation.sampling import inputs
from distillkit.files import WriteError, cache_folder, canonical_json, note_use
from distillkit.progress import Quiet, Reporter

log = logging.getLogger(__name__)

TIMED = 256
"""Samples whose generation is timed where a figure is not measured anew, if that takes no longer than this."""
TIMED_SECONDS, WARM_UP = 20.0, 8
_SPEEDS: dict[tuple[str, torch.device], float] = {}
"""Of teachers that this process has timed, by the key of their record: a bench asks for the same one in every run."""


def teacher_record(
    teacher: Teacher,
    protocol: Measure,
    *,
    device: torch.device,
    steps: int | None = None,
    guidance: float = 1.0,
    solver: SolverName | None = None,
    batch: int | None = None,
    rank: int = 0,
    world: int = 1,
    reporter: Reporter | None = None,
    stop: Callable[[], int] = lambda: 0,
    fresh: bool = False,
) -> Record:
    """The teacher's record under a protocol, by default with its own solver and number of steps.

    The figures are measured once, or come with the teacher; the speed is measured here, once in a process.

    Args:
        fresh: measure anew, whatever there is.
    """
    generator = teacher_generator(teacher, steps, guidance, solver)
    key, reporter = record_key(generator, protocol), reporter or Quiet()

    def kept() -> Record | None:
        found = None if fresh else _kept(key, teacher.records)
        return found if world == 1 or all(gather_object([found is not None])) else None

    def measured() -> Record:
        # Jobs that start at the same time need the same record: one measures, and the others find what it has kept.
        with alone(_path(key).with_suffix(".lock"), reporter, stop) if rank == 0 else nullcontext():
            if found := kept():
                return _timed(found, generator, protocol, device, key)
            record = measure(
                generator, protocol, device=device, batch=batch, rank=rank, world=world, reporter=reporter,
                stop=stop, folder=cache_folder() / "evaluations",
            )  # fmt: skip
            if rank:
                return record
            try:
                return write_record(_path(key), record)
            except WriteError as error:
                log.warning("the teacher's record is not kept for other runs: %s", error)
                return record.sealed()

    found = kept()
    return measured() if found is None else _timed(found, generator, protocol, device, key)


def _timed(record: Record, generator: Generator, protocol: Measure, device: torch.device, key: str) -> Record:
    """A kept record with the speed of generation here."""
    if (key, device) not in _SPEEDS:
        _SPEEDS[key, device] = samples_per_second(generator, protocol, device)
    return record.model_copy(update={"images_per_second": _SPEEDS[key, device]})


def record_key(generator: Generator, protocol: Measure) -> str:
    """Hash of all that a generator's record depends on: weights, network, schedule, conditioner, codec, shape, solver,
    steps, guidance, precision, and the protocol."""
    identity = {"of": generator.identity(), "protocol": fitted(generator, protocol).protocol.id}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def _path(key: str) -> Path:
    return cache_folder() / "records" / f"{key}.json"


def _kept(key: str, shipped: Mapping[str, Any]) -> Record | None:
    """A record that comes with the teacher or was measured before; what cannot be read is measured anew."""
    try:
        found = Record.model_validate(shipped[key]) if key in shipped else read_record(_path(key))
    except (DistillkitError, ValidationError):
        return None
    note_use(_path(key))
    return found if isinstance(found, Record) else None


@torch.inference_mode()
def samples_per_second(generator: Generator, protocol: Measure, device: torch.device, most: int = TIMED) -> float:
    """Speed of generation after a short warm-up, without torch.compile's graphs; by fewer samples where the protocol
    has fewer, or these take long."""
    samples = fitted(generator, protocol).protocol.samples
    most = min(most, samples.count)
    noise, keys, seeds = inputs(samples, range(most), generator.shape, generator.conditioner)
    noise, condition = noise.to(device), generator.conditioner.encode(keys).to(device)

    def seconds(count: int) -> float:
        chosen = slice(0, count)
        generator.warm_up(noise[chosen], condition.select(chosen), seeds[chosen])
        began = time.perf_counter()
        generator.generate(noise[chosen], condition.select(chosen), seeds[chosen])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    with generator.eager():
        warm_up = seconds(WARM_UP)
        count = min(most, max(WARM_UP, round(WARM_UP * TIMED_SECONDS / warm_up)))
        return count / seconds(count)
