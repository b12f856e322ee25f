"""A weight, a level, a sign or a target that gets lost in a first-party method fails a check of the kit."""

from dataclasses import dataclass, field

import pytest

from distillkit.registry import registry
from distillkit.testing import CHECKS, CheckFailure
from tests.testing.mutate import mutated

SCORES, DIFFERENCE = "distillkit.parts.score_matching", "distillkit.parts.score_difference"
TARGETS, REGRESSION = "distillkit.parts.targets", "distillkit.parts.regression"
NEIGHBOURS = "distillkit.parts.consistency"
HALVING, CONSISTENCY = "distillkit_progressive.halving", "distillkit_consistency.consistency"
IDENTITY, F_DIVERGENCE = "distillkit_sid.score_identity", "distillkit_fdistill.f_divergence"
CRITIC, ADVERSARIAL = "distillkit.parts.critic", "distillkit.parts.adversarial"


@dataclass(frozen=True)
class Mutation:
    """What is changed, in which method it shows, and which check finds it; `named` is in its message."""

    method: str
    check: str
    module: str
    old: str
    new: str
    named: str = ""
    settings: dict = field(default_factory=dict)


EFFECT, VARY, FIT = "settings_change_the_training", "levels_and_conditions_vary", "inputs_fit_their_levels"
SCALE, FOLLOW, MOVES = (
    "schedules_are_respected", "score_estimators_follow_the_student", "moves_to_the_teachers_distribution"
)  # fmt: skip

MUTATIONS = {
    # Weights.
    "progressive: weighting dropped": Mutation(
        "progressive", EFFECT, HALVING, "(self.weighting(self.schedule.ratio(t), self.sigma_data) * error).mean()",
        "error.mean()", "weighting",
    ),
    "progressive: weighting of time, not of ratio": Mutation(
        "progressive", SCALE, HALVING, "self.weighting(self.schedule.ratio(t)", "self.weighting(t", "halving",
    ),
    "consistency: weighting dropped": Mutation(
        "consistency", EFFECT, CONSISTENCY, "return weight * self.distance", "return self.distance", "weighting"
    ),
    "dmd: weight of the regression dropped": Mutation(
        "dmd", EFFECT, "distillkit_dmd.method", "Regression(distance, weight=config.regression_weight)",
        "Regression(distance)", "regression_weight",
    ),
    "dmd: weight of the KL dropped": Mutation(
        "dmd", EFFECT, "distillkit_dmd.method", "weight=config.kl_weight, guidance", "guidance", "kl_weight"
    ),
    "dmd: weight of the KL counts twice": Mutation(
        "dmd", "weights_belong_to_the_engine", DIFFERENCE, "return 0.5 * (x", "return 0.5 * self.weight * (x",
        "distribution_matching",
    ),
    "dmd2: weight of the GAN dropped": Mutation(
        "dmd2", EFFECT, "distillkit_dmd2.method", "Adversarial(discriminator, weight=config.gan_weight)",
        "Adversarial(discriminator, weight=1.0)", "gan_weight",
    ),
    "dmd2: weight of the critic's GAN dropped": Mutation(
        "dmd2", EFFECT, CRITIC, "self.gan_weight * self.gan.learner_loss", "self.gan.learner_loss",
        "critic_gan_weight",
    ),
    "dmd2: the critic's GAN loss dropped": Mutation(
        "dmd2", EFFECT, CRITIC, "matching + self.gan_weight * self.gan.learner_loss(self, step, fake, noise, t)",
        "matching",
        "critic_gan_weight",
    ),
    "tcm: guidance, which teacher_free refuses, dropped": Mutation(
        "tcm", EFFECT, "distillkit_tcm.method", "solver=config.solver, guidance=config.guidance",
        "solver=config.solver, guidance=1.0", "guidance",
    ),
    "f-distill: one divergence for all": Mutation(
        "f-distill", EFFECT, "distillkit_fdistill.method", "WEIGHTS[config.divergence]", 'WEIGHTS["hellinger"]',
        "divergence",
    ),
    "f-distill: the means of the weights never updated": Mutation(
        "f-distill", EFFECT, F_DIVERGENCE, "self.normalisation.update()", "pass", "ratio_decay"
    ),
    "r1: dropped": Mutation(
        "dmd2", EFFECT, ADVERSARIAL, "discriminator(fake, real) + penalty", "discriminator(fake, real)", "r1"
    ),
    "sida: weight of the GAN dropped": Mutation(
        "sida", EFFECT, "distillkit_sid.adversarial", "self.gan_weight * fakeness", "fakeness", "gan_weight"
    ),
    "ladd: the source of real samples dropped": Mutation(
        "ladd", "needs_are_what_is_used", ADVERSARIAL, "clean = step[CLEAN[self.source]]",
        'clean = step[CLEAN["images"]]', "Images",
    ),
    "ladd: depths dropped": Mutation(
        "ladd", EFFECT, "distillkit_ladd.method", "layers_at(config.depths)", "layers_at((0.5,))", "depths"
    ),
    "ladd: levels of what is judged dropped": Mutation(
        "ladd", EFFECT, "distillkit_ladd.method", "mean=config.level_mean", "mean=0.0", "level_mean"
    ),
    "sid: alpha dropped": Mutation(
        "sid", EFFECT, IDENTITY, "(1 - alpha) * apart.square() + ", "apart.square() + ", "alpha"
    ),
    "fake score: the network's loss weight dropped": Mutation(
        "sid", FOLLOW, SCORES, "return weighted_error(denoised, x0, denoiser.loss_weight(t))",
        "return weighted_error(denoised, x0, 0 * t + 1)", "fake_score",
    ),
    "critic: the network's loss weight dropped": Mutation(
        "dmd2", FOLLOW, CRITIC, "weight = self.denoiser.loss_weight(t)", "weight = 0 * t + 1", "critic"
    ),
    # Levels.
    "progressive: level fixed": Mutation(
        "progressive", VARY, HALVING, '2 * (step.uniform("level")', '2 * (0 * step.uniform("level")', "halving asks"
    ),
    "consistency: level fixed": Mutation(
        "consistency", VARY, CONSISTENCY, '(step.uniform("level") *', '(0 * step.uniform("level") *', "consistency_loss"
    ),
    "dmd: level fixed": Mutation(
        "dmd", VARY, DIFFERENCE, 'step.drawn_from(self.times, "kl/level")',
        "self.times[len(self.times) // 2].expand(len(step))", "the teacher",
    ),
    "fake score: level fixed": Mutation(
        "dmd", VARY, SCORES, "self.levels(step.uniform(purpose))", "self.levels(0 * step.uniform(purpose))",
        "fake_score",
    ),
    "dmd: range of levels dropped": Mutation(
        "dmd", EFFECT, SCORES, "[round(shares[0] * LEVELS) : round(shares[1] * LEVELS) + 1]", "", "level_max"
    ),
    "sid: range of levels dropped": Mutation(
        "sid", EFFECT, "distillkit_sid.method",
        "[round(config.smallest * LEVELS) : round(config.largest * LEVELS)]", "", "largest",
    ),
    "fake score: asked without noise": Mutation(
        "dmd", FIT, SCORES, "denoiser(denoiser.schedule.add_noise(x0, noise, t), t, condition)",
        "denoiser(x0, t, condition)", "fake_score",
    ),
    "sid: asked without noise": Mutation(
        "sid", FIT, IDENTITY, "self.teacher.schedule.add_noise(x, step.normal(\"level/noise\"), t)", "x", "less"
    ),
    "critic: noise at another level than it is asked at": Mutation(
        "dmd2", FIT, CRITIC, "self.denoiser.schedule.add_noise(x, noise, t)\n",
        'self.denoiser.schedule.add_noise(x, noise, self.draw_levels(step, "other/level"))\n', "critic",
    ),
    "sid: noise added by hand": Mutation(
        "sid", SCALE, IDENTITY, "self.teacher.schedule.add_noise(x, step.normal(\"level/noise\"), t)",
        "x + t.reshape(-1, 1, 1, 1) * step.normal(\"level/noise\")", "score_identity",
    ),
    "sid: noise of four axes": Mutation(
        "sid", "recipe_builds_for_every_teacher", IDENTITY,
        "self.teacher.schedule.add_noise(x, step.normal(\"level/noise\"), t)",
        "x + t.reshape(-1, 1, 1, 1) * step.normal(\"level/noise\")", "video",
    ),
    # Conditions, guidance, sources.
    "sid: conditions dropped": Mutation(
        "sid", VARY, IDENTITY, "self.fake(noisy, t, step.condition)",
        "self.fake(noisy, t, self.teacher.conditioner.null(step.condition))", "fake_score",
    ),
    "sid: guidance dropped": Mutation(
        "sid", EFFECT, IDENTITY, "step.condition, self.guidance)", "step.condition)", "guidance"
    ),
    "dmd: guidance dropped": Mutation(
        "dmd", EFFECT, DIFFERENCE, "self.teacher(noisy, t, condition, self.guidance, rescale=self.rescale)",
        "self.teacher(noisy, t, condition)", "guidance",
    ),
    "consistency: guidance dropped": Mutation(
        "consistency", EFFECT, NEIGHBOURS, "teacher(x, t, condition, weight)", "teacher(x, t, condition)",
        "guidance",
    ),
    "dmd2: student in the place of real images": Mutation(
        "dmd2", "needs_are_what_is_used", ADVERSARIAL, "clean = step[CLEAN[self.source]]",
        "clean = __import__('distillkit').Images(step.samples.detach(), step.condition)",
        "Images",
    ),
    "consistency: source dropped": Mutation(
        "consistency", "needs_are_what_is_used", CONSISTENCY, "step[CLEAN[self.source]]", 'step[CLEAN["images"]]',
        "Images", {"source": "pairs"},
    ),
    # Updates.
    "consistency: target's average never updated": Mutation(
        "consistency", EFFECT, CONSISTENCY, "self.neighbours.target.update()", "pass", "target_decay"
    ),
    "target: decay dropped": Mutation(
        "consistency", EFFECT, TARGETS, "1 - self.decay)", "1.0)", "target_decay"
    ),
    "fake score: its own rate dropped": Mutation(
        "sid", EFFECT, SCORES, "return None if lr is None else OptimizerConfig(lr=lr)", "return None", "fake_lr"
    ),
    "dmd2: updates of the critic dropped": Mutation(
        "dmd2", EFFECT, "distillkit_dmd2.method", "student_every=config.updates, ", "", "updates"
    ),
    "progressive: share of the last stages dropped": Mutation(
        "progressive", EFFECT, "distillkit_progressive.method",
        "share=config.last_share if k >= len(counts) - 2 else 1.0", "share=1.0", "last_share",
    ),
    # Gradients and draws.
    "dmd: the loss is detached": Mutation(
        "dmd", "gradients_reach_the_student_alone", DIFFERENCE, "return 0.5 * (x - (x - gradient).detach())",
        "return 0.5 * (x - (x - gradient)).detach()", "distribution_matching",
    ),
    "fake score: samples not detached": Mutation(
        "sid", "learners_leave_the_student_alone", SCORES, "step.samples.detach(), noise", "step.samples, noise",
        "fake_score",
    ),
    "sid: the noise that the samples came from": Mutation(
        "sid", "streams_are_separate", IDENTITY, 'step.normal("level/noise")', 'step.normal("noise")', "noise"
    ),
    "dmd: global randomness": Mutation(
        "dmd", "steps_are_deterministic", DIFFERENCE, 'step.normal("kl/noise")', "torch.randn_like(x)", "student"
    ),
    "kd: a sum in the place of the mean": Mutation(
        "kd", "steps_do_not_depend_on_the_split", REGRESSION, "self.distance(made, wanted).mean()",
        "self.distance(made, wanted).sum()", "student",
    ),
    # Targets and signs, which the known distribution shows.
    "fake score: drawn to the noise": Mutation(
        "dmd", FOLLOW, SCORES, "(denoised, x0, denoiser.loss_weight(t))", "(denoised, noise, denoiser.loss_weight(t))",
        "fake_score",
    ),
    "kd: noise for a target": Mutation(
        "kd", MOVES, REGRESSION, "step.pair_samples, step.pairs.sample\n", "step.pair_samples, step.pairs.noise\n"
    ),
    "dmd: sign of the gradient flipped": Mutation(
        "dmd", MOVES, DIFFERENCE, "(fake - real) / residual", "(real - fake) / residual", "",
        {"regression_weight": 0, "fake_updates": 1},
    ),
    "sid: sign of the loss flipped": Mutation(
        "sid", MOVES, IDENTITY, "apart * (fake - x)", "apart * (x - fake)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_mutation_of_a_first_party_method_fails_its_check(kind):
    mutation = MUTATIONS[kind]
    method = registry().named("methods")[mutation.method].value
    with mutated(mutation.module, mutation.old, mutation.new), pytest.raises(CheckFailure) as failure:
        CHECKS[mutation.check](method, mutation.settings)
    assert mutation.named in failure.value.what


def test_there_are_enough_of_them():
    assert len(MUTATIONS) >= 20 and len({m.check for m in MUTATIONS.values()}) >= 10
