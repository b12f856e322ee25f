"""Which processes of a training read the weights of its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from distillkit.contracts.guide import Guide
from distillkit.contracts.teacher import Teacher
from distillkit.errors import DistillkitError, Interrupted, UsageError
from distillkit.jobs.context import Context
from distillkit.jobs.spreading import asked_of
from distillkit.models.store.reference import Reference
from distillkit.models.weightless import is_weightless, without_weights
from distillkit.parallel.first import named_tensors
from distillkit.runs.config import RunConfig


def read_for(reference: Reference, config: RunConfig, context: Context) -> Teacher:
    """The teacher of a run. Where its networks will be in parts, the first process alone reads the weights of the
    denoiser: others have it on "meta", with what identifies it, until it is spread. Called by all processes.

    Raises:
        UsageError: as `Reference.load`; or where a process builds another network than the first.
        DistillkitError, Interrupted: as `Reference.load`.
    """
    asked = asked_of(config.training, context, teacher_dtype=config.teacher_weights.dtype)
    # What is refused later anyway is refused by all processes alike.
    refused = any((asked.others or {}).values()) or any(config.student.adapters)
    if refused or not asked.spreads:
        return reference.load(context.reporter, context.stopped)
    teacher = reference.load(context.reporter, context.stopped) if context.main else _weightless(reference, context)
    known = context.processes.first(_Known.of(teacher) if context.main else None)
    lacks = any(map(is_weightless, teacher.denoisers))
    problem = known.adopted_by(teacher, context.rank) if lacks and known else ""
    said = context.processes.gather((lacks, problem))
    if problems := [problem for _, problem in said if problem]:
        raise UsageError(problems[0])
    if not all(lacks for lacks, _ in said[1:]):
        context.reporter.say(
            f"teacher: every process reads the weights of {teacher.spec.name}, whose networks cannot be made without"
        )
    return teacher


def _weightless(reference: Reference, context: Context) -> Teacher:
    """The teacher without its denoiser's weights, or with them where it is not to be had so."""
    try:
        with without_weights():
            teacher = reference.load(context.reporter, context.stopped)
        # A network beside the denoiser is in no part of a recipe, so that nothing would give it weights.
        if teacher.start is teacher.denoiser:
            return teacher
    except (UsageError, Interrupted):
        raise
    except DistillkitError:
        # What is wrong in any case is said when it is read.
        pass
    return reference.load(context.reporter, context.stopped)


@dataclass(frozen=True)
class _Known:
    """What only a process knows that has read the weights.

    Args:
        sha256: of their files.
        tensors: shape and type of every parameter and buffer.
        guide: the same of what guides it.
    """

    sha256: str
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    guide: _Known | None = None

    @classmethod
    def of(cls, teacher: Teacher | Guide) -> _Known:
        tensors = named_tensors(teacher.denoiser).items()
        guide = teacher.guide if isinstance(teacher, Teacher) else None
        found = {name: (tuple(t.shape), t.dtype) for name, t in tensors}
        return cls(teacher.spec.weights_sha256, found, cls.of(guide) if guide else None)

    def adopted_by(self, teacher: Teacher | Guide, rank: int) -> str:
        """Make a teacher without weights the one with these; what is wrong where its network is another one."""
        if isinstance(teacher, Teacher) and self.guide and teacher.guide:
            problem = self.guide.adopted_by(teacher.guide, rank)
            if problem:
                return problem
        own = named_tensors(teacher.denoiser)
        shapes = {name: shape for name, (shape, _) in self.tensors.items()}
        found = {name: tuple(tensor.shape) for name, tensor in own.items()}
        if different := [name for name in sorted({*shapes, *found}) if shapes.get(name) != found.get(name)]:
            name = different[0]
            return (
                f"process {rank} has another network of {teacher.spec.name} than process 0: {name} is "
                f"{found.get(name, 'not there')}, not {shapes.get(name, 'there')}. Give every machine the same files."
            )
        for name, tensor in own.items():
            tensor.data = tensor.data.to(self.tensors[name][1])
        # A hash that a file states itself is compared when all inputs are.
        if not teacher.spec.weights_sha256:
            teacher.spec = teacher.spec.model_copy(update={"weights_sha256": self.sha256})
        return ""
