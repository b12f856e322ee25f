"""How a benchmark measures: one protocol on the same prompts for all, and records that need not be made twice."""

from __future__ import annotations

from distillkit.benchmark.suite import Suite
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.teacher import Teacher
from distillkit.data.prompts import PromptsConfig
from distillkit.errors import UsageError
from distillkit.evaluation.generator import Generator
from distillkit.evaluation.measure import Measure, with_examples
from distillkit.evaluation.pipeline import fitted
from distillkit.evaluation.presets import default_protocol, load_measure
from distillkit.evaluation.record import Record, Selection
from distillkit.jobs.prompts import opened
from distillkit.models.prompts import Prompts


def measure_of(suite: Suite, teacher: Teacher) -> Measure:
    """The protocol of a suite, ready to measure: teacher, students and what others have published on the same prompts.

    Raises:
        UsageError: where no protocol is known for the teacher and the suite names none, or one of a score of which more
            is better; or a teacher of text has no prompts, nor has the protocol.
        DistillkitError: when the protocol's files are missing.
    """
    protocol = suite.protocol or default_protocol(teacher)
    if protocol is None:
        raise UsageError(
            f"no protocol is known for the teacher {teacher.spec.name}: name one in the suite (protocol: NAME, see "
            "`distillkit protocols`, or protocol: FILE, made of images by `distillkit reference make`)"
        )
    shape = teacher.codec.decoded_shape(teacher.spec.shape)
    measure = load_measure(protocol, count=suite.samples, shape=shape)
    if measure.protocol.more_is_better:
        raise UsageError(f"a benchmark ranks by distances, and more is better of what {protocol} measures")
    return with_examples(measure, prompted(suite, teacher))


def prompted(suite: Suite, teacher: Teacher) -> Conditioner:
    """The teacher's conditioner with the suite's prompts, as trainings have it.

    Raises:
        UsageError, DistillkitError: when they cannot be read, or the teacher takes none.
    """
    found = opened(PromptsConfig.model_validate(suite.prompts), lambda text: None)
    return teacher.conditioner.with_prompts(found.prompts) if found else teacher.conditioner


def is_of(record: Record, generator: Generator, how: Measure) -> bool:
    """Whether a record holds what measuring the generator would give: all but its name is the same.

    Encodings of a training's prompts may be rounded there (`--prompts-dtype`), and are not in a student that is loaded.
    """
    listed = generator.conditioner.examples if isinstance(generator.conditioner, Prompts) else ()
    if set(listed) & set(how.prompts):
        return False
    subject = record.subject.model_copy(update={"name": generator.subject.name})
    return subject == generator.subject and record.protocol_id == fitted(generator, how).protocol.id


def as_of(generator: Generator, record: Record) -> Record:
    """The record under the generator's name; nothing was chosen among checkpoints."""
    return record.model_copy(update={"subject": generator.subject, "selection": Selection()})
