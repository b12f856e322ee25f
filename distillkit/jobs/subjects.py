"""What `distillkit evaluate` is asked to measure, and with which protocol."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from distillkit.contracts.teacher import Teacher
from distillkit.data.prompts import PromptsConfig, open_prompts
from distillkit.data.reader import open_files
from distillkit.errors import UsageError
from distillkit.evaluation.clip import Clip
from distillkit.evaluation.generator import (
    Candidate,
    Generator,
    GivenImages,
    student_generator,
    teacher_generator,
)
from distillkit.evaluation.measure import Measure, with_examples
from distillkit.evaluation.presets import OwnMeasure, default_protocol, is_reference, load_measure, preset, protocol_for
from distillkit.evaluation.record import Subject
from distillkit.files import existing_parent
from distillkit.jobs.context import Context
from distillkit.jobs.measures import NONE
from distillkit.jobs.options import EvaluationOptions, solver_steps
from distillkit.jobs.published import called_by, timed, whole_pipeline_of
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.folder import is_diffusers_folder
from distillkit.models.store.folder import SPEC
from distillkit.models.store.reference import Folder
from distillkit.models.store.resolve import resolve
from distillkit.runs.folder import CONFIG
from distillkit.runs.validation import read_config
from distillkit.students.artifact import DESCRIPTION, Student
from distillkit.students.checkpoints import STATE, split_selector
from distillkit.students.consistency_pipeline import consistency_pipeline
from distillkit.students.load import load_student


@dataclass(frozen=True)
class Found:
    """Something to measure, the protocol that it is measured with by default, and where its records go.

    Args:
        shape: of a decoded sample, without the batch, where that is known.
        samples: of that protocol; its own number if none.
    """

    candidate: Candidate
    protocol: str | None
    folder: Path
    shape: tuple[int, ...] | None = None
    samples: int | None = None


def found_subjects(
    subject: str | Path | Student | Teacher, options: EvaluationOptions, context: Context
) -> list[Found]:
    """What `subject` stands for, once for each NFE: a student, a run or one of its checkpoints; images (a folder, zip
    or parquet file); a pipeline of diffusers with its own scheduler; or a teacher.

    Raises:
        UsageError: when it is none of these, or cannot be sampled as asked.
    """
    asked = options.pipeline
    if isinstance(subject, Student | Teacher):
        options.require_no_images("the subject")
    if isinstance(subject, Student):
        return _students(subject, _student_name(subject), _records(subject.folder), options, context)
    if isinstance(subject, Teacher):
        asked.refuse_for(
            "this teacher is loaded: load_teacher(..., resolution=, embedded_guidance=, guide_with=) takes them"
        )
        options.published.refuse_for("this is a loaded teacher")
        return _teachers(subject, _records(None), options, context)
    name, path = str(subject), Path(subject).expanduser()
    if is_student(name):
        options.require_no_images(name)
        return _named_student(name, options, context)
    is_model = (path / SPEC).is_file() or is_diffusers_folder(path)
    if not is_model and (path.is_dir() or path.suffix.lower() in (".zip", ".parquet", ".npz")):
        return [_images(name, options)]
    options.require_no_images(name)
    reference = resolve(name, asked)
    asked.require_guidance(options.weight)
    records = _records(reference.unguided.path if isinstance(reference.unguided, Folder) else None)
    if whole := whole_pipeline_of(reference, called_by(options), context):
        return [Found(whole, None, records)]
    return _teachers(reference.load(context.reporter, context.stopped), records, options, context)


def _named_student(name: str, options: EvaluationOptions, context: Context) -> list[Found]:
    student = load_student(name, say=context.reporter.say)
    if name.startswith(hub.PREFIX):
        return _students(student, _student_name(student), _records(None), options, context)
    folder, selector = split_selector(name)
    run = folder.resolve().parent if folder.name == "student" else folder
    title = f"{run.name}@{selector}" if selector else run.name
    protocol, samples = _measured_by(run)
    found = _students(student, title, _records(folder), options, context, protocol)
    return [replace(one, samples=samples) for one in found]


def is_student(name: str) -> bool:
    """Whether a name is a run, a checkpoint or a student, one that others have published as a pipeline among them."""
    if consistency_pipeline(name):
        return True
    path = Path(name).expanduser()
    if not path.exists() and "@" in name:
        path = Path(name.rpartition("@")[0]).expanduser()
    return any((path / part).exists() for part in (DESCRIPTION, f"student/{DESCRIPTION}", "checkpoints", STATE))


def _measured_by(run: Path) -> tuple[str | None, int | None]:
    """The protocol that a run was asked to be measured under, and its number of samples; None where its own folder is
    not there, or says none."""
    evaluation = read_config(run / CONFIG).values.get("evaluation") if (run / CONFIG).is_file() else None
    if not isinstance(evaluation, dict):
        return None, None
    protocol, samples = evaluation.get("protocol"), evaluation.get("samples")
    named = protocol if isinstance(protocol, str) and protocol != NONE else None
    return named, samples if isinstance(samples, int) and samples >= 2 else None


def _student_name(student: Student) -> str:
    published = student.description.imported
    named = published.name if published else f"{student.description.method} student"
    return student.folder.name if student.folder else named


def _records(folder: Path | None) -> Path:
    """The folder of records beside what is measured, or in the working folder where nothing can be written there."""
    writable = folder is not None and os.access(existing_parent(folder), os.W_OK)
    return folder / "records" if folder is not None and writable else Path("records")


def _students(
    student: Student, name: str, records: Path, options: EvaluationOptions, context: Context, own: str | None = None
) -> list[Found]:
    options.pipeline.refuse_for(f"{name} is a student, which keeps what it was trained with")
    if options.solver is not None:
        raise UsageError(
            f"--solver {options.solver} is for teachers; a student has a sampler of its own, and takes --steps where "
            "that has a choice"
        )
    student, found = student.to(context.device), []
    if options.guidance is not None:
        student = student.with_guidance(options.guidance, context.reporter.say)
    student = timed(student, options.published, options.steps if options.steps is not None else options.nfe or None)
    name += options.published.suffix
    # A step of a student is one evaluation.
    for nfe in options.nfe or (options.steps,):
        sampled = student if nfe is None or nfe == student.nfe else student.with_nfe(nfe)
        description, codec = sampled.description, sampled.codec
        subject = Subject(
            kind="student", name=name, weights_sha256=description.weights_sha256, teacher=description.teacher.name,
            method=description.method, guidance=description.guidance, guide=description.guide,
            precision=options.precision, remarks=description.remarks,
        )  # fmt: skip
        shape = codec.decoded_shape(description.shape)
        protocol = own or protocol_for(description.teacher.name, shape, sampled.conditioner.count)
        generator = student_generator(sampled.generator, sampled.conditioner, codec, subject)
        found.append(Found(generator, protocol, records, shape))
    return found


def _teachers(teacher: Teacher, records: Path, options: EvaluationOptions, context: Context) -> list[Found]:
    teacher, solver = teacher.to(context.device), options.solver or teacher.spec.solver
    steps = [solver_steps(nfe, solver, options.weight) for nfe in options.nfe]
    steps = steps or [options.steps or teacher.spec.solver_steps]
    shape = teacher.codec.decoded_shape(teacher.spec.shape)
    return [
        Found(
            teacher_generator(teacher, count, options.weight, solver, precision=options.precision),
            default_protocol(teacher), records, shape,
        )
        for count in steps
    ]  # fmt: skip


def _images(name: str, options: EvaluationOptions) -> Found:
    generated = (options.nfe, options.steps, options.solver, *options.pipeline.options)
    if any(generated) or options.weight != 1.0 or options.precision != "fp32":
        raise UsageError(
            f"{name} holds images: --nfe, --steps, --solver, --guidance, --guide-with, --resolution, "
            "--embedded-guidance and --precision are for generators"
        )
    config = options.images_at(name)
    files = open_files(config)
    subject = Subject(kind="images", name=Path(name).stem, weights_sha256=files.fingerprint)
    return Found(GivenImages(subject, files, config), None, Path("records"))


def measure_for(found: Found, options: EvaluationOptions) -> Measure:
    """The protocol that was asked for, or the subject's default, on the samples that were asked for.

    Raises:
        UsageError: when there is none, or it does not let itself be changed so.
        DistillkitError: when its files are missing or wrong.
    """
    clip = Clip(str(options.clip), prefix=options.clip_prefix) if options.clip else None
    if options.protocol == NONE:
        raise UsageError("--protocol none is for runs that measure nothing: name one, or leave it out")
    name, own = options.protocol or (None if clip else found.protocol), options.reference is not None
    if own and not options.protocol and name and (is_reference(name) or isinstance(preset(name), OwnMeasure)):
        name = None
    others = (options.protocol, options.reference, options.clip)
    count = options.samples or (None if any(others) else found.samples)
    if isinstance(found.candidate, GivenImages):
        if options.first_seed:
            raise UsageError("given images have no seeds: leave --first-seed out")
        count = min(count or len(found.candidate.files), len(found.candidate.files))
    measure = load_measure(
        name, reference=options.reference, extractor=options.extractor, count=count, first_seed=options.first_seed,
        shape=found.shape or (3, 32, 32), clip=clip,
    )  # fmt: skip
    samples = measure.protocol.samples
    if (count is not None and samples.count != count) or samples.first_seed != options.first_seed:
        raise UsageError(
            f"the protocol {measure.protocol.name} always takes its own {samples.count:,} samples: leave --samples and "
            "--first-seed out"
        )
    return _with_prompts(measure, found.candidate, options)


def _with_prompts(measure: Measure, candidate: Candidate, options: EvaluationOptions) -> Measure:
    """The measure on the prompts that were asked for; on a student's own examples where nobody has any.

    Raises:
        UsageError: for a model of text without prompts.
        DistillkitError: when they cannot be read.
    """
    if options.prompts is not None:
        return measure.with_prompts(open_prompts(PromptsConfig(path=str(options.prompts))).prompts.texts)
    return with_examples(measure, candidate.conditioner) if isinstance(candidate, Generator) else measure
