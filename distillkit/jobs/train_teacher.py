"""Training a teacher in a run folder, with the same engine as every student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distillkit.contracts.codec import Codec
from distillkit.contracts.conditioner import ClassLabels, Conditioner, Unconditional
from distillkit.contracts.source import Batches, Images, SourceJob
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.contracts.text import PromptList
from distillkit.data.captions import fingerprint_of
from distillkit.data.files import ImageFiles
from distillkit.data.latents import has_latents, with_latents
from distillkit.data.reader import open_files
from distillkit.data.stream import ImageStream, open_reader, open_stream
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.metrics import MetricsFile
from distillkit.engine.outputs import Evaluation, Outputs, Preview
from distillkit.engine.trainer import Trainer
from distillkit.errors import UsageError
from distillkit.evaluation.generator import teacher_generator
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.record import Record, write_record
from distillkit.jobs.context import Context
from distillkit.jobs.evaluate import record_name
from distillkit.jobs.measures import measures_for
from distillkit.jobs.previews import Previews
from distillkit.jobs.prompts import encoded
from distillkit.jobs.spreading import building, spread, teacher_on
from distillkit.jobs.teacher_config import TeacherRunConfig
from distillkit.jobs.teacher_recipe import teacher_recipe
from distillkit.jobs.training import evaluation_of, measured, train, weights_at
from distillkit.models.diffusers.folder import COMPONENTS, network_prefix
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.write import network_of, write_pipeline
from distillkit.models.prompts import Prompts
from distillkit.models.store.card import with_data
from distillkit.models.store.folder import fresh_teacher, write_teacher
from distillkit.models.store.prompts import own_prompts, write_prompts
from distillkit.models.store.resolve import resolve
from distillkit.pieces import Held
from distillkit.registry import registry
from distillkit.runs.folder import RunFolder
from distillkit.tensors import Stored


def new_teacher(
    config: TeacherRunConfig, device: torch.device, say: Callable[[str], None] = lambda text: None
) -> tuple[Teacher, Batches[Images]]:
    """A teacher with fresh weights that fits the images, and the images.

    Args:
        say: hears what the images are, and later which damaged ones are replaced.

    Raises:
        UsageError: when there are none, or no network of the asked family fits their size.
        DistillkitError: when they cannot be read.
    """
    if config.data.path is None:
        teacher = _with_own_data(config)
        if teacher.images is None:
            raise UsageError(f"{config.name} brings no data; give its images: --data FILE.zip, FOLDER or hf:ORG/NAME")
        say(f"data: what comes with the teacher {config.name}")
        return teacher, teacher.images(device)
    if config.like:
        return _like(config, device, say)
    reader = open_reader(config.data, files=open_files(config.data, SourceJob(device, say=say)))
    conditioner = _conditioner(reader.files, config)
    stream = ImageStream(reader, device, conditioner=conditioner, batch=config.training.batch, say=say)
    say(f"data: {stream.summary}")
    spec = TeacherSpec(
        name=config.name,
        shape=stream.shape,
        solver_steps=18 if stream.shape[1] <= 32 else 40,
        network=config.network.describe(stream.shape, conditioner.count),
        conditioner=registry().describe("conditioners", conditioner),
        licence=config.licence,
        source=f"trained by distillkit on {Path(str(config.data.path)).name}, {len(stream):,} images "
        f"(fingerprint {stream.files.fingerprint[:16]})",
    )
    return fresh_teacher(spec, config.seed), stream


def _with_own_data(config: TeacherRunConfig) -> Teacher:
    """A teacher with fresh weights and the data that come with the one of its name, in the latents and conditions of
    another pipeline where that is asked for.

    Raises:
        UsageError: when that pipeline's pictures are of another size.
    """
    own = resolve(config.name)
    if not config.like:
        return own.fresh(config.seed)
    teacher, card = resolve(config.like).fresh(config.seed), own.card
    if card is None:
        return teacher
    sizes = [found.codec.decoded_shape(found.spec.shape) for found in (teacher, own.fresh(config.seed))]
    if sizes[0] != sizes[1]:
        raise UsageError(f"the pictures of {config.like} are {sizes[0]}, and the data of {config.name} are {sizes[1]}")
    # It is a teacher of this name's pictures, and measured as such; what it is like gave its other parts.
    _call(teacher, config, f"what comes with the teacher {config.name}")
    return with_data(teacher, card)


def _call(teacher: Teacher, config: TeacherRunConfig, data: str) -> None:
    """Give a teacher that is like another its own name, licence and source.

    Args:
        data: that it is trained on.
    """
    source = f"trained by distillkit like {config.like} on {data}"
    own = {"name": config.name, "licence": config.licence, "source": source}
    teacher.spec = teacher.spec.model_copy(update=own)


def _like(
    config: TeacherRunConfig, device: torch.device, say: Callable[[str], None]
) -> tuple[Teacher, Batches[Images]]:
    """As `new_teacher`, with the network of another, whose latents and conditions it learns."""
    teacher = resolve(config.like).fresh(config.seed).to(device)
    reader = open_reader(config.data, teacher, open_files(config.data, SourceJob(device, say=say)))
    texts = sorted(set(reader.files.captions or reader.files.class_names))
    if teacher.conditioner.takes_text and texts:
        # The pictures that show the training are of prompts like those that it learns.
        teacher.conditioner = teacher.conditioner.with_prompts(PromptList.of(texts, "the texts of the images"))
    stream = open_stream(config.data, teacher, device, reader=reader, batch=config.training.batch, say=say)
    say(f"data: {stream.summary}")
    fingerprint = stream.files.fingerprint[:16]
    _call(teacher, config, f"{Path(str(config.data.path)).name}, {len(stream):,} images (fingerprint {fingerprint})")
    teacher.images = None
    return teacher, stream


def _conditioner(files: ImageFiles, config: TeacherRunConfig) -> Conditioner:
    classes = files.num_classes if config.conditional else 0
    if not classes:
        return Unconditional()
    names = tuple(files.class_names)
    return ClassLabels(classes=classes, null_label=config.loss.label_dropout > 0, class_names=names)


TEACHER, RECORDS = "teacher", "records"


def write_trained(
    folder: Path, weights: Mapping[str, Tensor | Stored], spec: TeacherSpec, codec: Codec,
    prompts: Sequence[str] | None,
) -> TeacherSpec:  # fmt: skip
    """The folder of a teacher that was trained: a pipeline of diffusers where its network is that of one, with its
    prompts; returns the spec with the weights' hash."""
    parts = getattr(codec, "parts", None)
    theirs = any(name.startswith(tuple(map(network_prefix, COMPONENTS))) for name in weights)
    if not isinstance(parts, PipelineParts) or not theirs:
        return write_teacher(folder, weights, spec)
    [found] = write_pipeline(folder, parts.folder, network_of(parts.folder, weights)).values()
    if prompts is not None:
        write_prompts(folder, prompts)
    return spec.model_copy(update={"weights_sha256": found})


@dataclass(frozen=True)
class TrainedTeacher:
    """Where the weights are, how good the teacher's own sampler is with them, and whether it takes prompts and has none
    at hand."""

    folder: Path
    record: Record | None
    weights_sha256: str
    lacks_prompts: bool


class TeacherTraining:
    """One training of a teacher in its folder.

    Args:
        teacher, images: `new_teacher`'s.
        folder: locked and begun by the caller.
    """

    def __init__(
        self, config: TeacherRunConfig, teacher: Teacher, images: Batches[Images], folder: RunFolder, context: Context
    ) -> None:
        self.config, self.images, self.folder, self.context = config, images, folder, context
        self.teacher = teacher_on(teacher, config.training, context)
        with building(self.teacher, config.training, context):
            self.recipe = teacher_recipe(self.teacher, config.loss)
        self.strategy, self.networks = spread(self.recipe, self.teacher, config.training, context)
        self.measures = measures_for(teacher, config.evaluation)
        context.reporter.say(self.measures.summary)
        for doubt in config.training.doubts:
            context.reporter.say(f"warning: {doubt}")

    @property
    def inputs(self) -> dict[str, str]:
        """The images by what they are, for a resumption to compare."""
        images = self.images
        if not isinstance(images, ImageStream):
            return {}
        return {"data": f"fingerprint {fingerprint_of(images.files, self.teacher.conditioner)[:16]}"}

    def run(self, *, resume: bool = False) -> TrainedTeacher:
        """Train from scratch, or from the newest checkpoint, and write the teacher's folder.

        Raises:
            Interrupted: after a signal, with the command that continues.
        """
        context, folder = self.context, self.folder
        images = self._ready(self.images)
        trainer = Trainer(
            self.recipe, self.teacher, self.config.training, accelerator=context.accelerator, seed=self.config.seed,
            sources={Images: images}, say=context.reporter.say, strategy=self.strategy, networks=self.networks,
        )  # fmt: skip
        # Dropout: the average that is sampled from and written stays in evaluation mode.
        trainer.student.train()
        outputs = self._outputs(resumed=resume)
        with closing(outputs.trackers):
            train(trainer, outputs, folder, context, resume=resume)
            record = self._measured(trainer.ema, self.measures.closing, "measuring the teacher")
            if record:
                figures = [[label, figure.value] for label, figure in record.figures.items()]
                outputs.trackers.table("results", ["figure", "value"], figures, trainer.step * trainer.config.batch)
        spec, place = self.teacher.spec, folder / TEACHER
        if context.main:
            spec = self._written(place, weights_at(outputs.checkpoints, trainer.step), spec)
            if record:
                record = write_record(place / RECORDS / record_name(record), record)
        lacks = self.teacher.conditioner.takes_text and own_prompts(place) is None
        return TrainedTeacher(place, record, spec.weights_sha256, lacks)

    def _ready(self, images: Batches[Images]) -> Batches[Images]:
        """The images with what does not change from step to step made before: text encodings, and latents."""
        context, draws, folder = self.context, self.config.training.duration, self.folder.path
        self.teacher.conditioner = encoded(self.teacher, "auto", draws, context, folder)
        if not isinstance(images, ImageStream) or not has_latents(images.codec):
            return images
        images.conditioner = self.teacher.conditioner
        return with_latents(images, context.source_job(folder), draws)

    def _written(self, folder: Path, weights: Mapping[str, Held], spec: TeacherSpec) -> TeacherSpec:
        conditioner = self.teacher.conditioner
        texts = conditioner.texts if isinstance(conditioner, Prompts) else None
        return write_trained(folder, weights, spec, self.teacher.codec, texts)

    def _of(self, student: StudentGenerator) -> Teacher:
        """A teacher with the student's denoiser."""
        teacher = Teacher(student.denoiser, self.teacher.spec, self.teacher.conditioner, self.teacher.codec)
        teacher.images = self.teacher.images
        return teacher

    def _measured(self, student: StudentGenerator, how: Measure | None, title: str) -> Record | None:
        if how is None:
            return None
        batch = self.config.evaluation.batch
        return measured(teacher_generator(self._of(student)), how, self.context, batch=batch, title=title)

    def _outputs(self, *, resumed: bool) -> Outputs:
        config, context, folder = self.config, self.context, self.folder

        def evaluate(student: StudentGenerator) -> Evaluation | None:
            # The live bar of the training is on the screen: no second one beside it.
            record = self._measured(student, self.measures.selecting, "")
            return None if record is None else evaluation_of(record)

        def preview(student: StudentGenerator, step: int) -> Preview | None:
            if not context.main:
                return None
            return Previews(folder / "samples", self._of(student), (), config.seed)(student, step)

        return Outputs(
            Checkpoints(folder / "checkpoints", config.training.keep_checkpoints),
            MetricsFile(folder / "metrics.jsonl"),
            context.trackers(folder, config.model_dump(mode="json"), resumed=resumed),
            context.reporter, main=context.main, preview=preview, evaluate=evaluate,
            described={"teacher": self.teacher.spec.model_dump(mode="json")},
        )  # fmt: skip
