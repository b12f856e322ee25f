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

import numpy as np
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.data.decoding import Filter
from distillkit.data.files import ImageFiles, open_images
from distillkit.data.stream import pixels_in_order
from distillkit.engine.interrupt import StopRequest
from distillkit.errors import Interrupted, UsageError
from distillkit.evaluation.evaluate import Extracted, extract, figures_of, row_length
from distillkit.evaluation.extractor import FeatureExtractor, torchscript_extractor
from distillkit.evaluation.presets import (
    ImagePreparation,
    ProtocolPreset,
    ReferencePreset,
    extractor_by_name,
    preset,
    preset_for,
    ruler_for_preset,
)
from distillkit.evaluation.protocol import SampleSpec
from distillkit.evaluation.record import Record, Subject, write_record
from distillkit.evaluation.reference import load_reference
from distillkit.evaluation.sampling import Generate, Tally, sampled
from distillkit.evaluation.score import Ruler
from distillkit.files import cache_folder, canonical_json, write_bytes, write_json
from distillkit.pictures import png_bytes
from distillkit.progress import Quiet, Reporter
from distillkit.runs.folder import environment
from distillkit.runs.scores import judges_digits, student_pixels, teacher_pixels
from distillkit.students.artifact import DESCRIPTION, load_student
from distillkit.teachers.diffusers_folder import is_diffusers_folder
from distillkit.teachers.folder import is_teacher_folder
from distillkit.teachers.load import load_teacher

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Candidate:
    """Something that can be measured: a generator of samples, or given images.

    Args:
        subject: what the record says of it.
        protocol: the name under which a default protocol is looked up.
        folder: where its records go.
    """

    subject: Subject
    protocol: str
    folder: Path
    spec: TeacherSpec | None = None
    denoiser: Denoiser | None = None
    generate: Generate | None = None
    images: ImageFiles | None = None


@dataclass(frozen=True)
class EvaluationOptions:
    """What the user asked for."""

    protocol: str | None = None
    reference: Path | None = None
    extractor: str | None = None
    samples: int | None = None
    first_seed: int = 0
    nfe: Sequence[int] = ()
    metrics: Sequence[str] = ("fd",)
    batch: int = 256
    precision: str = "fp32"
    guidance: float = 1.0
    output: Path | None = None
    save_images: Path | None = None


@dataclass
class Evaluated:
    """A record and where it lies."""

    record: Record
    path: Path


def candidates(name: str, options: EvaluationOptions, device: torch.device, reporter: Reporter) -> list[Candidate]:
    """What `name` stands for: a student or run folder, images (zip or folder), or a teacher; one for each NFE asked.

    Raises:
        UsageError: when it is none of these, or cannot be sampled in so many evaluations.
    """
    path = Path(name).expanduser()
    if (path / DESCRIPTION).is_file() or (path / "student" / DESCRIPTION).is_file() or (path / "checkpoints").is_dir():
        return [_student(name, path, options, device, nfe) for nfe in options.nfe or (None,)]
    is_model = is_teacher_folder(path) or is_diffusers_folder(path)
    if not is_model and (path.is_dir() or path.suffix.lower() in (".zip", ".parquet")):
        return [_images(name)]
    teacher = load_teacher(name, reporter).to(device)
    steps = [_heun_steps(nfe, options.guidance) for nfe in options.nfe] or [teacher.spec.solver_steps]
    return [_teacher(teacher, count, options) for count in steps]


def _student(name: str, path: Path, options: EvaluationOptions, device: torch.device, nfe: int | None) -> Candidate:
    student = load_student(name).to(device)
    description, generator = student.description, student.generator
    if nfe is not None and nfe != description.nfe:
        try:
            generator.sampler = generator.sampler.with_nfe(nfe)
        except ValueError as error:
            raise UsageError(
                f"{name} is sampled in {description.nfe:g} evaluation(s), not in {nfe}: {error}"
            ) from error
    if options.guidance != 1.0:
        raise UsageError("a student has its guidance learnt in; --guidance is for teachers")
    subject = Subject(
        kind="student", name=path.name if path.name != "student" else path.resolve().parent.name,
        weights_sha256=description.weights_sha256, teacher=description.teacher.name, method=description.method,
        sampler=generator.sampler.model_dump(mode="json"), guidance=description.guidance, precision=options.precision,
        trained_with_lpips=description.settings.get("distance") == "lpips",
    )  # fmt: skip
    generate = student_pixels(generator, Teacher(generator.denoiser, generator.spec))
    return Candidate(subject, description.teacher.name, path / "records", generator.spec, generator.denoiser, generate)


def _teacher(teacher: Teacher, steps: int, options: EvaluationOptions) -> Candidate:
    spec, steps_said = teacher.spec, f"{steps} Heun step{'' if steps == 1 else 's'}"
    subject = Subject(
        kind="teacher", name=f"{spec.name}, {steps_said}", weights_sha256=spec.weights_sha256, teacher=spec.name,
        sampler={"kind": "heun", "steps": steps}, guidance=options.guidance, precision=options.precision,
    )  # fmt: skip
    generate = teacher_pixels(teacher, steps, options.guidance)
    return Candidate(subject, spec.name, Path("records"), spec, teacher.denoiser, generate)


def _images(name: str) -> Candidate:
    files = open_images(name)
    subject = Subject(kind="images", name=Path(name).stem, weights_sha256=files.fingerprint)
    return Candidate(subject, "", Path("records"), images=files)


def _heun_steps(nfe: int, guidance: float) -> int:
    if nfe < 1 or nfe % 2 == 0:
        raise UsageError(f"--nfe {nfe}: Heun's sampler takes an odd number of evaluations, 2 N - 1 for N steps")
    if guidance != 1.0:
        raise UsageError("--nfe counts unguided evaluations; with --guidance leave it out")
    return (nfe + 1) // 2


def ruler_for(candidate: Candidate, options: EvaluationOptions) -> tuple[Ruler, ProtocolPreset]:
    """The protocol that was asked for, or the one that fits the candidate's teacher.

    Raises:
        UsageError: when there is none.
        DistillkitError: when its files are missing or wrong.
    """
    chosen = preset(options.protocol) if options.protocol else preset_for(candidate.protocol)
    if chosen is None and candidate.spec is not None and judges_digits(candidate.spec):
        chosen = preset("digits8")
    shape = candidate.spec.shape if candidate.spec else None
    extractor = extractor_for(options.extractor, shape) if options.extractor else None
    reference = load_reference(options.reference) if options.reference else None
    if chosen is None:
        if reference is None or extractor is None:
            raise UsageError(
                "no protocol is known for this; name one (--protocol, see `distillkit protocols`), or give both "
                "--reference and --extractor"
            )
        chosen = ProtocolPreset(
            name="own", title="", extractor=str(options.extractor), count=10_000, labels="index mod classes",
            reference=ReferencePreset(id=reference.id, count=reference.count),
        )  # fmt: skip
    count = options.samples
    if candidate.images is not None:
        count = min(count or len(candidate.images), len(candidate.images))
    ruler = ruler_for_preset(
        chosen, count=count, first_seed=options.first_seed, reference=reference, extractor=extractor
    )
    protocol = ruler.protocol
    if candidate.images is not None:
        given = SampleSpec(
            count=protocol.samples.count, rng="given images", noise="none", labels="none", quantise="given",
            prepare=protocol.samples.prepare,
        )  # fmt: skip
        protocol = protocol.model_copy(update={"samples": given})
    elif candidate.spec is not None and not candidate.spec.num_classes:
        protocol = protocol.model_copy(update={"samples": protocol.samples.model_copy(update={"labels": "none"})})
    return Ruler(protocol, ruler.extractor, ruler.reference), chosen


def extractor_for(name: str, shape: tuple[int, int, int] | None) -> FeatureExtractor:
    """An extractor by name, or a TorchScript file."""
    if Path(name).suffix in (".pt", ".pth", ".ts"):
        return torchscript_extractor(Path(name).expanduser(), shape or (3, 32, 32))
    return extractor_by_name(name)


def evaluate(
    candidate: Candidate,
    options: EvaluationOptions,
    accelerator: Accelerator,
    reporter: Reporter,
    stop: StopRequest,
) -> Evaluated | None:
    """Measure one candidate; the first process returns the record.

    Features are kept as they come, so the same command goes on after an interruption.

    Raises:
        Interrupted: after a signal; what was measured is kept.
        DistillkitError: when files are missing or wrong, or images are not what the extractor expects.
    """
    began = time.monotonic()
    reporter = reporter if accelerator.is_main_process else Quiet()
    ruler, chosen = ruler_for(candidate, options)
    row = row_length(ruler.extractor, options.metrics)
    folder = _work_folder(candidate, ruler, row, accelerator.num_processes)
    with _alone(folder, main=accelerator.is_main_process):
        return _measure(candidate, options, accelerator, reporter, stop, ruler, chosen, folder, began)


def _measure(
    candidate: Candidate, options: EvaluationOptions, accelerator: Accelerator, reporter: Reporter, stop: StopRequest,
    ruler: Ruler, chosen: ProtocolPreset, folder: Path, began: float,
) -> Evaluated | None:  # fmt: skip
    row = row_length(ruler.extractor, options.metrics)
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
    record = Record(
        subject=candidate.subject,
        protocol=protocol,
        protocol_id=protocol.id,
        label=protocol.label,
        figures=figures,
        nfe=sum(p.evaluations for p in parts) / count if is_model else None,
        images_per_second=sum(p.images_per_second for p in parts) if is_model else None,
        samples_sha256=whole.samples_sha256,
        remarks=tuple(remarks),
        seconds=time.monotonic() - began,
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    nfe = f"-nfe{record.nfe:g}" if record.nfe is not None else ""
    name = f"{candidate.subject.name.replace(', ', '-').replace(' ', '-')}-{protocol.name}{nfe}.json"
    into = options.output or candidate.folder
    path = into if into.suffix == ".json" else into / name
    record = write_record(path, record)
    shutil.rmtree(folder, ignore_errors=True)
    return Evaluated(record, path)


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
