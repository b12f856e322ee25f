"""What a run trains and from which data, by its method, teacher and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from distillkit.contracts.recipe import Recipe
from distillkit.contracts.sampler import Sampler
from distillkit.contracts.source import Source, batch_types
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.contracts.text import PromptList
from distillkit.data.identity import guide_identity, teacher_identity
from distillkit.data.shards import identity_hash
from distillkit.errors import DistillkitError, UsageError
from distillkit.jobs.adapters import with_adapters
from distillkit.jobs.unread import Reads
from distillkit.registry import Installed, blaming, registry
from distillkit.runs.config import RunConfig, StudentConfig


def recipe_of(config: RunConfig, method: Installed, teacher: Teacher, reads: Reads | None = None) -> Recipe:
    """The method's recipe, with the student's noise levels that were asked for.

    Args:
        reads: learns which settings the method read for it.

    Raises:
        UsageError: for settings that the recipe cannot follow.
        DistillkitError: when the method fails, blaming its package.
    """

    def make() -> Recipe:
        made = method.value()
        blamed = blaming(f"method {config.method}", method.origin, "cannot make its recipe")
        with blamed, torch.random.fork_rng(devices=[]):
            # A recipe may hold fresh networks: their weights are the seed's, on every process.
            torch.manual_seed(config.seed)
            settings = made.Config.model_validate(config.settings)
            recipe: Recipe = (reads or Reads()).watching(partial(made.recipe, teacher), settings)
        return recipe

    recipe = with_adapters(make, teacher, *config.student.adapters, seed=config.seed)
    if recipe.guidance not in (None, 1.0) and not teacher.guidable:
        raise UsageError(
            f"--guidance {recipe.guidance:g}: the teacher {teacher.spec.name} has no unconditional prediction to guide "
            "against (where guidance is an input of the network, it is on already); use guidance 1, or name another "
            "network to guide it: --guide-with NAME"
        )
    for setting, weight in recipe.guided.items():
        if weight != 1 and not teacher.conditioner.has_null:
            raise UsageError(
                f"--{setting.replace('_', '-')} {weight:g}: the teacher {teacher.spec.name} has no unconditional "
                "prediction, so that networks trained from it have none to guide against; leave it at 1"
            )
    student = config.student
    if student.init and recipe.starts_as_teacher:
        raise UsageError(f"--student {student.init}: {recipe.starts_as_teacher}")
    if student.levels or student.start_ratio or student.times:
        recipe.student.sampler = _at_levels(recipe.student.sampler, student, teacher)
        recipe.stages = [
            stage if stage.sampler is None else stage.at(_at_levels(stage.sampler, student, teacher))
            for stage in recipe.stages
        ]
    return recipe


def _at_levels(sampler: Sampler, student: StudentConfig, teacher: Teacher) -> Sampler:
    """The sampler with the levels that were asked for.

    Raises:
        UsageError: where the method fixes them.
    """
    schedule = teacher.schedule
    given = {"--student-times": student.times, "--student-levels": student.levels, "--start-ratio": student.start_ratio}
    option = next(name for name, value in given.items() if value)
    if student.times:
        levels: Sequence[float] = student.times
        if outside := [t for t in levels if not schedule.t_min <= t <= schedule.t_max]:
            raise UsageError(
                f"{option}: {outside[0]:g} is none of {teacher.spec.name}'s times, which go from {schedule.t_min:g} to "
                f"{schedule.t_max:g}"
            )
    else:
        ratios = torch.tensor(student.levels or (student.start_ratio,), dtype=torch.float64)
        levels = schedule.at(ratios).tolist()
    if student.start_ratio:
        levels = schedule.levels(len(sampler.times(schedule)), levels[0])
    if any(t <= t_next for t, t_next in pairwise(levels)):
        raise UsageError(f"{option}: must be descending, within the schedule's ends")
    try:
        return sampler.with_levels(levels)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def sources_of(config: RunConfig, method: Installed, teacher: Teacher, recipe: Recipe) -> dict[type, Source[Any]]:
    """The sources that the recipe reads, by the type of their batches.

    Raises:
        DistillkitError: for a type that nothing offers.
    """
    offered, wanted = registry().sources(), batch_types(recipe.needs)
    if strange := [need for need in wanted if need not in offered]:
        known = ", ".join(sorted(kind.__name__ for kind in offered))
        raise DistillkitError(
            f"method {config.method} ({method.origin}) needs {strange[0].__name__}, which no source "
            f"serves; there are sources of {known}. Offer one by the hook distillkit_sources"
        )
    found = {}
    for kind in sorted(wanted, key=lambda kind: kind.__name__):
        source = offered[kind]
        settings = source.Config.model_validate(config.sources.get(source.name, {}))
        if recipe.guidance is not None and getattr(settings, "guidance", 1.0) is None:
            settings = settings.model_copy(update={"guidance": recipe.guidance})
        found[kind] = source(teacher, settings)
        found[kind].draws, found[kind].batch = config.training.duration, config.training.batch
    return found


def inputs_of(
    teacher: Teacher, sources: Mapping[type, Source[Any]], prompts: PromptList | None = None
) -> dict[str, str]:
    """The teacher, the prompts and the files of data by what they are, for a resumption to compare."""

    def stated(spec: TeacherSpec, identity: Mapping[str, Any]) -> str:
        weights = f", weights {spec.weights_sha256[:16]}" if spec.weights_sha256 else ""
        return f"{spec.name}{weights}, identity {identity_hash(identity)}"

    guide = teacher.guide
    networks = {"teacher": stated(teacher.spec, teacher_identity(teacher, guided=False))}
    networks |= {"guide": stated(guide.spec, guide_identity(guide))} if guide else {}
    found = {source.name: source.fingerprint for source in sources.values() if source.fingerprint}
    files = {name: f"fingerprint {fingerprint[:16]}" for name, fingerprint in found.items()}
    listed = {"prompts": f"{len(prompts):,} of {prompts.name}, sha256 {prompts.sha256[:16]}"} if prompts else {}
    return {**networks, **listed, **files}
