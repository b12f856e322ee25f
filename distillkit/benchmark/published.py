"""Published generators as entries of a benchmark: what they are, and whether they compare with what is trained here."""

from __future__ import annotations

from pathlib import Path

from distillkit.benchmark.suite import Published
from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.generator import Generator
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.pipeline import fitted
from distillkit.evaluation.replacements import lora_name
from distillkit.evaluation.sampling import Tally
from distillkit.evaluation.whole_pipeline import WholePipeline
from distillkit.jobs.context import Context
from distillkit.jobs.options import EvaluationOptions
from distillkit.jobs.published import downloaded
from distillkit.jobs.subjects import found_subjects
from distillkit.models.diffusers import hub
from distillkit.models.store.resolve import offered
from distillkit.students.checkpoints import split_selector


def published_candidate(entry: Published, context: Context) -> Generator | WholePipeline:
    """What is measured: a student, or a pipeline with its own scheduler.

    Raises:
        UsageError: for what is not there, or options that do not fit it.
        DistillkitError: for a teacher, given images, or files that are damaged or cannot be had.
    """
    is_path = not entry.subject.startswith(hub.PREFIX) and offered(entry.subject) is None
    if is_path and not Path(split_selector(entry.subject)[0]).exists():
        raise UsageError(
            f"subject {entry.subject}: there is no such folder; name a student's, a pipeline's, or hf:ORG/REPO"
        )
    given = entry.assembly.model_dump(exclude_defaults=True)
    options = EvaluationOptions(steps=entry.steps, guidance=entry.guidance, **given)
    candidate = found_subjects(entry.subject, options, context)[0].candidate
    if not isinstance(candidate, Generator | WholePipeline):
        raise DistillkitError(f"{entry.subject} is a set of images, which have no noise in common with students")
    if candidate.subject.kind == "teacher":
        raise DistillkitError(
            f"{entry.subject} is a teacher; a pipeline is sampled by its own scheduler where its steps are given: "
            "steps: 4"
        )
    return candidate


def require_comparable(
    candidate: Generator | WholePipeline, teacher: Generator, measure: Measure, context: Context
) -> None:
    """Refuse a generator whose samples are not those that the suite's students make: figures of others say nothing.

    Raises:
        DistillkitError: naming the difference.
    """
    theirs, ours = (fitted(one, measure).protocol for one in (candidate, teacher))
    if theirs.id != ours.id:
        raise DistillkitError(
            f"it is measured under another protocol than the suite's teacher and students: its samples' labels are "
            f"{theirs.samples.labels!r}, and theirs {ours.samples.labels!r}"
        )
    classes = [getattr(one, "conditioner", None) for one in (candidate, teacher)]
    counts = [one.count for one in classes if one is not None and not one.takes_text]
    if len(set(counts)) > 1:
        raise DistillkitError(f"it has {counts[0]:,} classes, and the suite's students {counts[1]:,}")
    [first] = candidate.draw(measure, [range(1)], context.device, Tally())
    made, due = tuple(first.shape[1:]), tuple(teacher.codec.decoded_shape(teacher.shape))
    if measure.preparation is None and made != due:
        raise DistillkitError(f"its samples are {_by(made)}, and those of the suite's students {_by(due)}")


def to_download(entry: Published) -> list[str]:
    """What an entry names on the hub that is not in its cache yet."""
    lora = lora_name(entry.lora) if entry.lora and entry.lora.startswith(hub.PREFIX) else None
    named = (entry.subject, lora, entry.weights)
    return [name for name in named if name and name.startswith(hub.PREFIX) and not downloaded(name)]


def download(entry: Published) -> None:
    """Bring what an entry names on the hub into its cache.

    Raises:
        DistillkitError: when it cannot be had.
    """
    for name in to_download(entry):
        if hub.is_file(name):
            hub.file(name)
        else:
            hub.snapshot(name)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
