"""The one way to a record: samples, their features to a file, every figure from that file.

Runs, `distillkit evaluate` and benchmarks all call `measure`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from distillkit.environment import environment
from distillkit.errors import DistillkitError, Interrupted, UsageError
from distillkit.evaluation.features import Kept
from distillkit.evaluation.generator import Candidate
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.record import Record, Selection
from distillkit.evaluation.sampling import Tally
from distillkit.files import at_work, canonical_json, unwritable
from distillkit.locks import held, waiting
from distillkit.progress import Quiet, Reporter

log = logging.getLogger(__name__)

TEMPORARY = "distillkit-features"

SELECTION_SEED = 1_000_000
"""Evaluations during training use seeds from here on; the closing one uses seeds from 0, which no choice has seen."""

Save = Callable[[Tensor, int], None]
"""(decoded samples (B, ...), index of the first) -> None."""


def measure(
    candidate: Candidate,
    measure: Measure,
    *,
    device: torch.device,
    metrics: Sequence[str] = (),
    count: int | None = None,
    first_seed: int | None = None,
    batch: int | None = None,
    rank: int = 0,
    world: int = 1,
    reporter: Reporter | None = None,
    title: str = "",
    stop: Callable[[], int] = lambda: 0,
    folder: Path | None = None,
    save: Save | None = None,
    selection: Selection | None = None,
) -> Record:
    """Measure a candidate. Processes share the samples; every process returns the same record, which is not written.

    Args:
        candidate: a generator, or given images.
        measure: the protocol.
        metrics: that are computed; the measure's own by default.
        count, first_seed: other samples than the protocol's, which is another protocol.
        batch: samples in one pass; it changes nothing else. The measure's own by default.
        title: of the progress bar.
        stop: a signal's number once one has come, else 0.
        folder: under which features are kept until the record is made, by all that they depend on, so that the same
            call resumes after an interruption; they are kept in a temporary folder, and lost, by default.
        save: called with all decoded samples.
        selection: how the candidate was chosen among others.

    Raises:
        UsageError: for a metric that is not known, or content that the extractor does not take.
        DistillkitError: when samples are not what they should be, or features are not finite.
        Interrupted: after a signal.
    """
    measure = fitted(candidate, measure.with_samples(count, first_seed))
    metrics = tuple(metrics) or measure.metrics[:1]
    row, began, reporter = measure.row(metrics), time.monotonic(), reporter or Quiet()
    work_folder = folder / _key(candidate, measure, metrics, world) if folder else None
    with _work_folder(work_folder, rank, reporter, stop) as work:
        kept, tally = _keep(
            candidate, measure, row, metrics, work, device, batch or measure.batch, rank, world, reporter, title, stop,
            save, resumable=work == work_folder,
        )  # fmt: skip
        whole, parts = _gathered(kept, work, row, tally, rank, world)
        made: list[Record | None] = [None]
        if rank == 0:
            try:
                figures, remarks = measure.figures(whole, metrics)
            except ValueError as error:
                raise UsageError(f"{measure.protocol.name}: {error}") from error
            protocol, is_model = measure.protocol, candidate.subject.kind != "images"
            made[0] = Record(
                subject=candidate.subject,
                protocol=protocol,
                protocol_id=protocol.id,
                label=protocol.label,
                figures=figures,
                nfe=sum(part.evaluations for part in parts) / protocol.samples.count if is_model else None,
                images_per_second=sum(part.images_per_second for part in parts) if is_model else None,
                samples_sha256=whole.samples_sha256,
                selection=selection or Selection(),
                remarks=tuple(remarks),
                seconds=time.monotonic() - began,
                environment=environment(),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
    if world > 1:
        broadcast_object_list(made)
    assert made[0] is not None
    return made[0]


def fitted(candidate: Candidate, measure: Measure) -> Measure:
    """The measure with the samples that the candidate gives: unconditional ones have no labels, given images no seeds.

    Raises:
        UsageError: when the extractor does not take what the candidate makes.
    """
    if candidate.content not in measure.extractor.takes:
        raise UsageError(
            f"{measure.extractor.spec.id} measures {' and '.join(measure.extractor.takes)}, and "
            f"{candidate.subject.name or 'this'} makes {candidate.content}; choose another --protocol or --extractor"
        )
    samples = candidate.samples_of(measure.protocol.samples)
    return measure.with_protocol(measure.protocol.model_copy(update={"samples": samples}))


def _key(candidate: Candidate, measure: Measure, metrics: Sequence[str], world: int) -> str:
    identity = {"of": candidate.identity(), "protocol": measure.protocol.id, "rows": [*metrics], "world": world}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


@torch.inference_mode()
def extract(
    rows: Callable[[Tensor], Tensor], samples: Iterable[Tensor], kept: Kept, advance: Callable[[int], None]
) -> Iterator[Tensor]:
    """Keep the features of batches of decoded samples (B, ...), which are handed through.

    Args:
        rows: decoded samples -> what is kept of them (B, row).

    Raises:
        DistillkitError: when features are not finite.
    """
    for decoded in samples:
        try:
            kept.add(rows(decoded), decoded)
        except ValueError as error:
            raise DistillkitError(str(error)) from error
        advance(len(decoded))
        yield decoded


def _keep(
    candidate: Candidate, measure: Measure, row: int, metrics: Sequence[str], work: Path, device: torch.device,
    batch: int, rank: int, world: int, reporter: Reporter, title: str, stop: Callable[[], int], save: Save | None, *,
    resumable: bool,
) -> tuple[Kept, Tally]:  # fmt: skip
    """Make this process's share of the samples and keep their features; what is there already is not made again."""
    count = measure.protocol.samples.count
    mine = range(count * rank // world, count * (rank + 1) // world)
    kept = Kept(work / f"part-{rank}", measure.extractor.spec.dim, row)
    tally = _tally(kept)
    # Samples to be saved are all made anew.
    if save or tally.samples != len(kept):
        tally = Tally()
        kept.cut(0)
    if kept.damaged:
        reporter.say(f"what was measured before is damaged in {kept.folder}, so it is measured anew")
    if len(kept):
        reporter.say(f"continuing with {len(kept):,} of {len(mine):,} samples that were measured before")
    first = mine.start + len(kept)
    batches = [range(k, min(k + batch, mine.stop)) for k in range(first, mine.stop, batch)]
    measure = measure.to(device)

    def rows(decoded: Tensor) -> Tensor:
        return measure.rows(measure.prepared(decoded), metrics)

    with reporter.task(title or f"measuring {candidate.subject.name}", len(mine), "samples", len(kept)) as task:
        source = candidate.draw(measure, batches, device, tally)
        for decoded in extract(rows, source, kept, task.advance):
            if save:
                save(decoded, mine.start + len(kept) - len(decoded))
            if resumable:
                kept.seal(asdict(tally))
            if signum := stop():
                remark = "; what was measured is kept and the same command resumes it" if resumable else ""
                raise Interrupted(f"stopped while measuring{remark}", signum)
    return kept, tally


def _gathered(mine: Kept, work: Path, row: int, tally: Tally, rank: int, world: int) -> tuple[Kept, list[Tally]]:
    """All processes' features, on the first one, and tallies."""
    if world == 1:
        return mine, [tally]
    parts = gather_object([(mine.parts(), tally)])
    if rank:
        return mine, []
    whole = Kept(work / "whole", mine.dim, row)
    whole.cut(0)
    for part, _ in parts:
        whole.append(part)
    return whole, [tally for _, tally in parts]


@contextlib.contextmanager
def _work_folder(folder: Path | None, rank: int, reporter: Reporter, stop: Callable[[], int]) -> Iterator[Path]:
    """A folder for features, removed at the end; one that was given is held against others, and stays after an error.

    Raises:
        Interrupted: after a signal, while another process measures in it.
    """
    if folder is not None and (reason := unwritable(folder.parent)):
        log.warning(
            "%s cannot be written (%s); going on without it, so an interruption loses what was measured",
            folder.parent, reason,
        )  # fmt: skip
        folder = None
    if folder is None:
        _remove_abandoned()
        with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}-{os.getpid()}-") as temporary:
            yield Path(temporary)
        return
    with alone(folder.with_suffix(f".{rank}.lock"), reporter, stop):
        yield folder
        for part in (f"part-{rank}", *(("whole",) if rank == 0 else ())):
            shutil.rmtree(folder / part, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _remove_abandoned() -> None:
    """Remove the temporary folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}-*-*"):
        process = folder.name.split("-")[2]
        if process.isdecimal() and not at_work(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def alone(lock: Path, reporter: Reporter, stop: Callable[[], int]) -> contextlib.AbstractContextManager[None]:
    """Hold a lock while something is measured, saying so where another process has it.

    Raises:
        Interrupted: after a signal, while another process has it.
    """
    return held(lock, waiting(reporter.say, "measuring the same under the same protocol", stop))


def _tally(kept: Kept) -> Tally:
    try:
        return TypeAdapter(Tally).validate_python(kept.notes)
    except ValidationError:
        return Tally()
