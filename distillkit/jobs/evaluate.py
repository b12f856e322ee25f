"""`distillkit evaluate`: a student, a teacher or images under a protocol; resumable; one record for each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.data.decoding import Filter
from distillkit.data.files import ImageFiles
from distillkit.data.stream import pixels_in_order
from distillkit.engine.interrupt import StopRequest
from distillkit.errors import Interrupted, UsageError
from distillkit.embedded.mixture.protocol import DensityRuler, divergence, push
from distillkit.evaluation.evaluate import Extracted, extract, figures_of, row_length
from distillkit.evaluation.presets import ImagePreparation, ProtocolPreset
from distillkit.evaluation.protocol import Protocol, SampleSpec
from distillkit.evaluation.record import Figure, Record, write_record
from distillkit.evaluation.sampling import Tally, sampled
from distillkit.evaluation.score import Ruler
from distillkit.files import cache_folder, canonical_json, write_bytes, write_json
from distillkit.pictures import png_bytes
from distillkit.progress import Quiet, Reporter
from distillkit.jobs.subjects import Candidate, EvaluationOptions, ruler_for
from distillkit.runs.folder import environment

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Evaluated:
    """A record and where it lies."""

    record: Record
    path: Path


def evaluate(
    found: Sequence[Candidate],
    options: EvaluationOptions,
    accelerator: Accelerator,
    reporter: Reporter,
    stop: StopRequest,
) -> list[Evaluated]:
    """Measure candidates of one kind with one protocol; the first process returns the records.

    Features are kept as they come, so the same command goes on after an interruption.

    Raises:
        Interrupted: after a signal; what was measured is kept.
        DistillkitError: when files are missing or wrong, or images are not what the extractor expects.
    """
    reporter = reporter if accelerator.is_main_process else Quiet()
    ruler, chosen = ruler_for(found[0], options)
    if isinstance(ruler, DensityRuler):
        computed = [_compute(candidate, options, accelerator, ruler) for candidate in found]
        return [evaluated for evaluated in computed if evaluated]
    assert chosen is not None
    row = row_length(ruler.extractor, options.metrics)
    made = []
    for candidate in found:
        folder = _work_folder(candidate, ruler, row, accelerator.num_processes)
        with _alone(folder, main=accelerator.is_main_process):
            made.append(_measure(candidate, options, accelerator, reporter, stop, ruler, chosen, row, folder))
    return [evaluated for evaluated in made if evaluated]


def _measure(
    candidate: Candidate, options: EvaluationOptions, accelerator: Accelerator, reporter: Reporter, stop: StopRequest,
    ruler: Ruler, chosen: ProtocolPreset, row: int, folder: Path,
) -> Evaluated | None:  # fmt: skip
    began = time.monotonic()
    protocol, count = ruler.protocol, ruler.protocol.samples.count
    dim, rank, world = ruler.extractor.spec.dim, accelerator.process_index, accelerator.num_processes
    mine = range(count * rank // world, count * (rank + 1) // world)
    kept, tally = Extracted(folder / f"part-{rank}", dim, row), _read_tally(folder, rank)
    # The tally is written after the features: what it counts is there. Images to be saved are all made anew.
    if options.save_images or tally.samples > len(kept):
        tally = Tally()
    kept.cut(tally.samples)
    if len(kept):
        reporter.say(f"going on with {len(kept):,} of {len(mine):,} samples that were measured before")
    saver = _Saver(options.save_images, protocol.samples.first_seed)
    with reporter.task(f"measuring {candidate.subject.name}", len(mine), "samples", len(kept)) as task:
        first = mine.start + len(kept)
        batches = [range(k, min(k + options.batch, mine.stop)) for k in range(first, mine.stop, options.batch)]
        source = _pixels(candidate, chosen.images, protocol.samples, options, accelerator.device, batches, tally)
        for pixels in extract(ruler.extractor.to(accelerator.device), source, kept, task.advance):
            saver.add(pixels, mine.start + len(kept) - len(pixels))
            _write_tally(folder, rank, tally)
            if stop:
                raise Interrupted(
                    "stopped; what was measured is kept and the same command goes on with it", stop.signum or 2
                )
    saver.close()
    accelerator.wait_for_everyone()
    parts = [_read_tally(folder, r) for r in range(world)]
    whole = kept
    if world > 1 and accelerator.is_main_process:
        whole = Extracted(folder / "whole", dim, row)
        whole.cut(0)
        for r in range(world):
            whole.append(Extracted(folder / f"part-{r}", dim, row))
    if not accelerator.is_main_process:
        return None
    reporter.say("computing figures")
    figures, remarks = figures_of(whole, ruler, options.metrics)
    is_model = candidate.images is None
    evaluated = _recorded(
        candidate, options, protocol, figures, began,
        nfe=sum(p.evaluations for p in parts) / count if is_model else None,
        images_per_second=sum(p.images_per_second for p in parts) if is_model else None,
        samples_sha256=whole.samples_sha256,
        remarks=tuple(remarks),
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    return evaluated


def _compute(
    candidate: Candidate, options: EvaluationOptions, accelerator: Accelerator, ruler: DensityRuler
) -> Evaluated | None:
    """A generator of points against the truth, which takes a moment on one process."""
    if not accelerator.is_main_process:
        return None
    began = time.monotonic()
    assert candidate.generate is not None and candidate.denoiser is not None
    points, nfe, speed = push(candidate.generate, candidate.denoiser, accelerator.device)
    found, protocol = divergence(points), ruler.protocol
    cells = protocol.extractor.id
    figures = {
        protocol.label: Figure(value=found.kl, estimator="kl@1"),
        f"between[{cells}]": Figure(value=found.between, estimator="mass beyond 4 deviations@1"),
        f"covered[{cells}]": Figure(value=found.covered, estimator="modes with half their mass@1"),
    }
    return _recorded(candidate, options, protocol, figures, began, nfe=nfe, images_per_second=speed)


def _recorded(
    candidate: Candidate, options: EvaluationOptions, protocol: Protocol, figures: dict[str, Figure], began: float,
    **measured: Any,
) -> Evaluated:  # fmt: skip
    """Write the record of a measurement that began at `began`."""
    record = Record(
        subject=candidate.subject,
        protocol=protocol,
        protocol_id=protocol.id,
        label=protocol.label,
        figures=figures,
        seconds=time.monotonic() - began,
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **measured,
    )
    nfe = f"-nfe{record.nfe:g}" if record.nfe is not None else ""
    name = f"{candidate.subject.name.replace(', ', '-').replace(' ', '-')}-{protocol.name}{nfe}.json"
    into = options.output or candidate.folder
    path = into if into.suffix == ".json" else into / name
    return Evaluated(write_record(path, record), path)


def _pixels(
    candidate: Candidate, preparation: ImagePreparation | None, samples: SampleSpec, options: EvaluationOptions,
    device: torch.device, batches: list[range], tally: Tally,
) -> Iterator[Tensor]:  # fmt: skip
    if candidate.images is not None:
        yield from _given(candidate.images, preparation, device, batches, tally)
        return
    assert candidate.generate is not None and candidate.denoiser is not None and candidate.spec is not None
    generate = candidate.generate

    def cast(noise: Tensor, condition: Condition, seeds: list[int]) -> Tensor:
        dtype = AUTOCAST.get(options.precision)
        with torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext():
            return generate(noise, condition, seeds)

    for _, pixels in sampled(cast, candidate.denoiser, candidate.spec, samples, device, batches, tally):
        yield pixels


def _given(
    files: ImageFiles, preparation: ImagePreparation | None, device: torch.device, batches: list[range], tally: Tally
) -> Iterator[Tensor]:
    resolution: int | None
    filter_name: Filter
    resolution, filter_name = (preparation.resolution, preparation.filter) if preparation else (None, "lanczos")
    for pixels in pixels_in_order(files, batches, resolution=resolution, filter_name=filter_name):
        tally.samples += len(pixels)
        yield pixels.to(device)


def _work_folder(candidate: Candidate, ruler: Ruler, row: int, world: int) -> Path:
    """Where features lie until the record is written: one place for one measurement."""
    identity = {
        "subject": candidate.subject.model_dump(mode="json", exclude={"name"}),
        "protocol": ruler.protocol.id,
        "row": row,
        "world": world,
    }
    key = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]
    return cache_folder() / "evaluations" / key


@contextlib.contextmanager
def _alone(folder: Path, *, main: bool) -> Iterator[None]:
    """Hold a measurement's folder, so that two commands do not write into one.

    Raises:
        UsageError: when another process measures the same.
    """
    if not main:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError("another process is measuring the same under the same protocol; wait for it") from error
    try:
        yield
    finally:
        lock.release()


def _read_tally(folder: Path, rank: int) -> Tally:
    try:
        return Tally(**json.loads((folder / f"tally-{rank}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return Tally()


def _write_tally(folder: Path, rank: int, tally: Tally) -> None:
    write_json(folder / f"tally-{rank}.json", asdict(tally))


class _Saver:
    """Writes images on request: PNG files in a folder, or one .npz (arr_0, (N, H, W, C) uint8, as ADM's tools read)."""

    def __init__(self, path: Path | None, first_seed: int) -> None:
        self.path, self.first_seed = path, first_seed
        self._kept: list[Tensor] = []

    def add(self, pixels: Tensor, index: int) -> None:
        if self.path is None:
            return
        if self.path.suffix == ".npz":
            self._kept.append(pixels.cpu())
            return
        for offset, image in enumerate(pixels.cpu()):
            write_bytes(self.path / f"{self.first_seed + index + offset:06d}.png", png_bytes(image))

    def close(self) -> None:
        if self.path is not None and self._kept:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside = self.path.with_name(f".{self.path.name}")
            with aside.open("wb") as file:
                np.savez(file, torch.cat(self._kept).permute(0, 2, 3, 1).numpy())
            aside.replace(self.path)
