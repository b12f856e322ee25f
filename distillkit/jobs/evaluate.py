"""`distillkit evaluate`: a student, a teacher or images under a protocol; resumable; one record for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillkit.contracts.teacher import Teacher
from distillkit.errors import UsageError
from distillkit.evaluation.generator import GivenImages
from distillkit.evaluation.pipeline import measure
from distillkit.evaluation.record import Record, write_record
from distillkit.files import cache_folder, replacing, slug, write_bytes
from distillkit.jobs.context import Context
from distillkit.jobs.options import EvaluationOptions, within_bounds
from distillkit.jobs.subjects import Found, found_subjects, measure_for
from distillkit.pictures import png_bytes
from distillkit.students.artifact import Student


@dataclass(frozen=True)
class Evaluated:
    """A record and where it was written."""

    record: Record
    path: Path


def evaluate_subject(
    subject: str | Path | Student | Teacher, options: EvaluationOptions, context: Context
) -> list[Evaluated]:
    """Measure a subject, once for each number of evaluations; the first process writes and returns the records.

    Features are kept as they come, so that the same call resumes after an interruption.

    Raises:
        UsageError: for a name that stands for nothing, or options that do not fit it.
        DistillkitError: when files are missing or wrong, or samples are not what the extractor takes.
        Interrupted: after a signal; what was measured is kept.
    """
    within_bounds(
        samples=options.samples, first_seed=options.first_seed, guidance=options.guidance, steps=options.steps
    )
    for nfe in options.nfe:
        within_bounds(nfe=nfe)
    if options.output and Path(options.output).suffix == ".json" and len(options.nfe) > 1:
        raise UsageError("--output names one record and several are made; name a folder")
    found = found_subjects(subject, options, context)
    protocol = measure_for(found[0], options)
    if options.samples is None and found[0].samples == protocol.protocol.samples.count:
        context.reporter.say(f"samples: {found[0].samples:,}, as the run was measured")
    saver = _Saver(options, context, found)
    for one in found:
        if isinstance(one.candidate, GivenImages):
            context.reporter.say(f"data: {one.candidate.reader(protocol).summary}")
    made = []
    for one in found:
        record = measure(
            one.candidate, protocol, device=context.device, metrics=_metrics(options), batch=options.batch,
            rank=context.rank, world=context.world, reporter=context.reporter, stop=context.stopped,
            folder=cache_folder() / "evaluations", save=saver.add if saver.path else None,
        )  # fmt: skip
        saver.close()
        if isinstance(one.candidate, GivenImages):
            for line in one.candidate.reader(protocol).said():
                context.reporter.say(line)
        if context.main:
            path = _path(record, one, options)
            made.append(Evaluated(write_record(path, record), path))
    return made


def _metrics(options: EvaluationOptions) -> tuple[str, ...]:
    """Those that were asked for; where a CLIP was, the protocol's own and the CLIP score."""
    asked = tuple(options.metrics)
    with_others = options.clip and (options.protocol or options.reference) and "clip" not in asked
    return (*(asked or ("fd",)), "clip") if with_others else asked


def _path(record: Record, found: Found, options: EvaluationOptions) -> Path:
    into = Path(options.output).expanduser() if options.output else found.folder
    return into if into.suffix == ".json" else into / record_name(record)


def record_name(record: Record) -> str:
    """A file name that no other protocol's record of the same subject has."""
    subject, samples = record.subject, record.protocol.samples
    asked = subject.kind in ("teacher", "pipeline") or subject.sampler.get("guidance") is not None
    parts = [
        subject.name,
        record.protocol.name,
        str(samples.count),
        *([f"seed{samples.first_seed}"] if samples.first_seed else []),
        *([f"guidance{subject.guidance:g}"] if asked and subject.guidance != 1.0 else []),
        *([f"with-{subject.guide.name}", subject.guide.weights_sha256[:8]] if asked and subject.guide else []),
        *([subject.precision] if subject.precision != "fp32" else []),
        *([] if record.nfe is None else [f"nfe{record.nfe:g}"]),
        record.protocol_id.partition("-")[2][:8],
    ]
    return "-".join(map(slug, parts)) + ".json"


class _Saver:
    """Writes images on request: PNG files in a folder, or one .npz (arr_0, (N, H, W, C) uint8, as ADM's tools read)."""

    def __init__(self, options: EvaluationOptions, context: Context, found: list[Found]) -> None:
        self.path = Path(options.save_images).expanduser() if options.save_images else None
        self.first_seed = options.first_seed
        self._kept: list[Tensor] = []
        if self.path is None:
            return
        if found[0].candidate.content != "images":
            raise UsageError(f"--save-images keeps images, and this makes {found[0].candidate.content}")
        if len(found) > 1:
            raise UsageError("--save-images keeps the images of one NFE, and several are asked for")
        if context.world > 1 and self.path.suffix == ".npz":
            raise UsageError("--save-images: one .npz file cannot be written by several processes; name a folder")

    def add(self, images: Tensor, index: int) -> None:
        assert self.path is not None
        if self.path.suffix == ".npz":
            self._kept.append(images.cpu())
            return
        for offset, image in enumerate(images.cpu()):
            write_bytes(self.path / f"{self.first_seed + index + offset:06d}.png", png_bytes(image))

    def close(self) -> None:
        if self.path is not None and self._kept:
            with replacing(self.path) as aside, aside.open("wb") as file:
                np.savez(file, torch.cat(self._kept).permute(0, 2, 3, 1).numpy())
