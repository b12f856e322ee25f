"""How a job's networks are spread over its processes, by its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from distillkit.contracts.denoiser import adapted_in
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.teacher import Teacher
from distillkit.engine.config import TrainingConfig
from distillkit.engine.networks import Networks, own_bytes
from distillkit.engine.optimization import merged
from distillkit.engine.optimizers import EIGHT_BITS, moment_bytes
from distillkit.errors import UsageError
from distillkit.jobs.context import Context
from distillkit.models.weightless import is_weightless, without_weights
from distillkit.parallel.choice import Asked, choose, local_processes
from distillkit.parallel.copies import lazily, own_memory
from distillkit.parallel.strategy import Strategy, is_spread
from distillkit.weights import weight_bytes


def asked_of(
    training: TrainingConfig, context: Context, recipe: Recipe | None = None, teacher_dtype: str = "fp32"
) -> Asked:
    """What a training asks of its strategy."""
    configs = [merged(training, learner.optimizer) for learner in recipe.learners] if recipe else []
    trained = [recipe.student, *recipe.learners] if recipe else []
    others = {
        "--teacher-dtype fp8": teacher_dtype == "fp8",
        # Hooks that gather a block stay outside of its graph, but not outside of that of a network.
        "--compile network (but --compile blocks is)": training.compile == "network",
        "--channels-last on": training.channels_last == "on",
        f"--optimizer {EIGHT_BITS}": any(config.optimizer == EIGHT_BITS for config in (training, *configs)),
        "adapters, which share one copy of the weights": recipe is not None and any(map(adapted_in, trained)),
    }
    return Asked(
        training.parallel, context.world, local_processes(context.world), context.device,
        precision=training.precision, shard_size=training.shard_size, others=others,
    )  # fmt: skip


def teacher_on(teacher: Teacher, training: TrainingConfig, context: Context) -> Teacher:
    """The teacher where the job needs it; its network stays where it was loaded if it may be spread in parts.

    Raises:
        UsageError: where an earlier job of this process has spread it.
    """
    if any(map(is_spread, teacher.denoisers)):
        raise UsageError(
            f"the teacher {teacher.spec.name} is held in parts by an earlier job of this process; load it anew, or use "
            "--parallel replicate"
        )
    if not asked_of(training, context).may_spread:
        return teacher.to(context.device)
    for denoiser in teacher.denoisers:
        own_memory(denoiser)
    teacher.conditioner = teacher.conditioner.to(context.device)
    teacher.codec = teacher.codec.to(context.device)
    return teacher


@contextmanager
def building(teacher: Teacher, training: TrainingConfig, context: Context) -> Iterator[None]:
    """While a recipe is made: copies of a network that may be spread take no memory before; where the teacher has no
    weights in this process, no denoiser is given any.

    Raises:
        UsageError: for a recipe that computes with weights that this process does not have.
    """
    if not asked_of(training, context).may_spread:
        yield
        return
    left_out = any(map(is_weightless, teacher.denoisers))
    try:
        with lazily(), without_weights() if left_out else nullcontext():
            yield
    except Exception as error:
        if not left_out or not _lacks_values(error):
            raise
        raise UsageError(
            f"--parallel {training.parallel}: this method computes with the teacher's weights while it makes its "
            f"recipe, and the first process alone has them then; use --parallel replicate ({error})"
        ) from error


def _lacks_values(error: BaseException | None) -> bool:
    """Whether it comes from torch, of a tensor that has no values."""
    while error is not None:
        if isinstance(error, RuntimeError) and "meta" in str(error).lower():
            return True
        error = error.__cause__
    return False


def spread(
    recipe: Recipe, teacher: Teacher, training: TrainingConfig, context: Context, teacher_dtype: str = "fp32"
) -> tuple[Strategy, Networks]:
    """The strategy of a training, and its networks as that has them.

    Args:
        teacher_dtype: of the teacher's weights, as `--teacher-dtype` has it.

    Raises:
        UsageError: for a strategy that cannot be had, or not with the other settings.
    """
    asked = asked_of(training, context, recipe, teacher_dtype)

    def held_bytes() -> int:
        trained = [(recipe.student, training), *((part, merged(training, part.optimizer)) for part in recipe.learners)]
        averages = (1 + len(training.ema_sigmas)) * own_bytes(recipe.student)
        weights = sum(map(weight_bytes, teacher.denoisers)) + averages
        owned = [module for objective in recipe.objectives for module in objective.modules().values()]
        moments = sum(moment_bytes(p, c.optimizer) for m, c in trained for p in m.parameters() if p.requires_grad)
        return weights + sum(map(own_bytes, owned)) + sum(2 * own_bytes(module) for module, _ in trained) + moments

    strategy = choose(asked, held_bytes, context.reporter.say)
    if training.offload_teacher and not strategy.spreads:
        raise UsageError(
            "--offload-teacher keeps the parts of a teacher in the CPU's memory; it needs --parallel shard"
        )
    if training.shard_size and strategy.name != "hybrid":
        raise UsageError("--shard-size says how many processes share a network under --parallel hybrid, and no other")
    networks = Networks.spread(
        recipe, teacher, strategy, offload_teacher=training.offload_teacher, ema_sigmas=training.ema_sigmas
    )
    return strategy, networks


def require_whole(training: TrainingConfig, what: str) -> None:
    """Refuse parts for a training of something that is no denoiser.

    Raises:
        UsageError: naming it.
    """
    if training.parallel in ("shard", "hybrid"):
        raise UsageError(f"--parallel {training.parallel}: {what} is held whole by every process; leave it out")
