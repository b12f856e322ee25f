"""The space that is searched for each entry: what is common to all, and what is its own.

What the papers fix (SiD's alpha, the range of DMD's levels) is varied too where the settings offer it. Pairs are part
of the budget, so their number is searched.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.tuning.dimensions import Choice, Dimension, Log, Times

LR = "training.lr"
START = Choice("student.start_ratio", (None, 2.5, 8.0))
"""The noise level at which the student starts; None: the method's own."""
BETA1 = Choice("training.beta1", (0.0, 0.9))
LEVELS = (Choice("settings.level_min", (0.02, 0.1, 0.2, 0.3)), Choice("settings.level_max", (0.6, 0.75, 0.85, 0.98)))
WEIGHTING = Choice("settings.weighting", ("uniform", "karras", "snr+1", "truncated-snr"))
DISTANCE = Choice("settings.distance", ("l2", "l1", "pseudo-huber"))

SUITES: Mapping[str, tuple[Dimension, ...]] = {
    "digits": (
        Log(LR, 2e-4, 3e-3),
        Choice("training.batch", (32, 64, 128)),
        Choice("training.ema_halflife", ("0.5%", "1%", "2%", "5%")),
    ),
    "mixture": (
        Log(LR, 2e-4, 4e-3),
        Choice("training.batch", (64, 128, 256, 512)),
        Choice("training.ema_halflife", ("0.5%", "1%", "2%", "5%")),
    ),
    "shapes": (
        Log(LR, 1e-4, 3e-3),
        Choice("training.batch", (16, 32, 64)),
        Choice("training.ema_halflife", ("0.5%", "1%", "2%", "5%")),
    ),
}
"""Of every entry of a suite."""

PAIRS: Mapping[str, tuple[Dimension, ...]] = {
    # As good as the teacher's own 18 and 20 steps, by the suites' figures, at little more than half the cost.
    "digits": (Choice("sources.pairs.count", (512, 1024, 2048)), Choice("sources.pairs.steps", (10,))),
    "mixture": (Choice("sources.pairs.count", (32, 512, 2048, 8192)),),
    "shapes": (Choice("sources.pairs.count", (256, 512, 1024)), Choice("sources.pairs.steps", (10,))),
}
"""Of methods that regress on pairs. The most leave a quarter at least of a quarter of the budget for the training."""


def fake(name: str) -> Dimension:
    """A rate of a fake score or critic in multiples of the student's: it must outrun the student."""
    return Times(f"settings.{name}", LR, 1.0, 10.0)


SCORES = (fake("fake_lr"), Choice("settings.fake_updates", (1, 2, 3)), *LEVELS, START)
"""Of DMD's KL objective."""

CRITIC = (
    fake("critic_lr"), Choice("settings.updates", (1, 2, 3, 5)), Log("settings.gan_weight", 1e-3, 1.0),
    Log("settings.critic_gan_weight", 1e-3, 1.0), *LEVELS, START, BETA1,
)  # fmt: skip
"""Of a fake score with a discriminator."""

CLEAN_LEVELS = (Choice("settings.level_mean", (-1.5, -1.1, -0.4, 0.4)), Choice("settings.level_std", (1.2, 1.6, 2.0)))
"""Of ln(sigma / alpha), where clean samples are noised."""

STEP_WEIGHTS = ("inverse-step", "uniform", "snr+1", "truncated-snr")

METHODS: Mapping[str, tuple[Dimension, ...]] = {
    "dmd": (Log("settings.kl_weight", 0.02, 2.0), *SCORES),
    "dmd-without-regression": (*SCORES, BETA1),
    "dmd-without-kl": (DISTANCE, START),
    "dmd2": (
        *CRITIC, Choice("settings.gan_level_min", (0.0, 0.2, 0.4)), Choice("settings.gan_level_max", (0.6, 0.8, 1.0)),
    ),
    "f-distill": (
        *CRITIC, Choice("settings.divergence", ("jensen-shannon", "hellinger", "forward-kl", "jeffreys")),
        Choice("settings.ratio_max", (3.0, 20.0)),
    ),
    "sid": (
        fake("fake_lr"), Choice("settings.alpha", (0.8, 1.0, 1.1, 1.2)), Choice("settings.largest", (0.6, 0.8, 1.0)),
        START, BETA1,
    ),
    "sida": (
        fake("critic_lr"), Choice("settings.alpha", (0.8, 1.0, 1.1, 1.2)), Choice("settings.largest", (0.6, 0.8, 1.0)),
        Log("settings.gan_weight", 1e-4, 1e-1), Log("settings.critic_gan_weight", 1e-3, 1e-1), START, BETA1,
    ),
    "ladd": (
        Times("settings.discriminator_lr", LR, 1.0, 30.0), Choice("settings.updates", (1, 2)),
        Choice("settings.gan_loss", ("hinge", "non-saturating")), Choice("settings.level_mean", (-1.5, -1.0, 0.0, 1.0)),
        Choice("settings.level_std", (1.0, 1.2, 1.5, 2.0)), Log("settings.r1_weight", 1e-4, 1.0),
        Choice("settings.depths", ((0.5,), (0.25, 0.5), (0.25, 0.5, 0.75))), START,
    ),
    "consistency": (
        Choice("settings.levels", (8, 12, 18, 28, 40)), Choice("settings.target_decay", (0.0, 0.9, 0.95)), DISTANCE,
        WEIGHTING, START,
    ),
    "ect": (
        Choice("settings.stages", (2, 4, 8)), *CLEAN_LEVELS, Choice("settings.c", (0.0, 0.01, 0.1, 1.0)),
        Choice("settings.teacher_free", (True, False)), Choice("settings.weighting", STEP_WEIGHTS), START,
    ),
    "ict": (
        Choice("settings.first_levels", (5, 10)), Choice("settings.last_levels", (20, 40, 160)), *CLEAN_LEVELS,
        Choice("settings.c", (0.0, 0.01, 0.1, 1.0)), Choice("settings.teacher_free", (True, False)), START,
    ),
    "tcm": (
        Choice("settings.first_share", (0.3, 0.5, 0.7)), Choice("settings.stages", (3, 5, 8)),
        Choice("settings.boundary", (0.5, 1.0, 2.0)), Choice("settings.boundary_weight", (0.1, 1.0)),
        Choice("settings.truncated_std", (0.5, 1.0, 2.0)), Choice("settings.df", (0.1, 2.0, 10.0)), *CLEAN_LEVELS,
        Choice("settings.c", (0.0, 0.01, 0.1, 1.0)), Choice("settings.teacher_free", (True, False)),
    ),
    "reflow": (
        Choice("settings.rounds", (1, 2)), Choice("settings.steps", (2, 4, 8)), DISTANCE,
        Choice("settings.last_share", (1.0, 2.0, 4.0)),
    ),
    "scm": (
        Choice("settings.level_mean", (-1.0, -0.5, 0.0, 0.5, 1.0)), Choice("settings.level_std", (1.0, 1.4, 1.8, 2.4)),
        Choice("settings.tangent_warmup", (0.0, 0.1, 0.25, 0.5)), Log("settings.tangent_constant", 0.03, 1.0),
        Times("settings.weight_lr", LR, 1.0, 10.0), Choice("settings.teacher_free", (False, True)), START,
    ),
    "meanflow": (
        Choice("settings.level_mean", (-0.4, 0.0, 0.5, 1.0)), Choice("settings.level_std", (1.0, 1.4, 2.0)),
        Choice("settings.end_mean", (None, -2.0, -4.0, -8.0)), Choice("settings.share", (0.25, 0.5, 0.75, 1.0)),
        Choice("settings.power", (0.0, 0.5, 0.75, 1.0)), Choice("settings.teacher_free", (False, True)), START,
    ),
    "progressive": (Choice("settings.start_steps", (4, 8, 16, 32)), Choice("settings.last_share", (1.0, 2.0, 4.0)),
                    WEIGHTING),
    "kd": (DISTANCE, START),
}  # fmt: skip
"""Of one method, or of an ablation, whose best settings are others."""

WITH_PAIRS = {"dmd", "dmd-without-kl", "kd", "ladd", "reflow"}


def space(suite: str, entry: str) -> tuple[Dimension, ...]:
    """All dimensions that are searched for an entry of a suite.

    Raises:
        KeyError: where the suite or the entry has none.
    """
    return SUITES[suite] + METHODS[entry] + (PAIRS[suite] if entry in WITH_PAIRS else ())
