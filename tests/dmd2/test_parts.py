"""DMD2's parts: the critic, the two time-scale rule, the multi-step student."""

import pytest
import torch

from distillkit import Condition, Images, OneStep, Pairs, Recipe, Samples, StudentGenerator, UsageError
from distillkit.diffusion import RenoisingSampler
from distillkit.parts import Adversarial, Critic, FakeScore, Gan, LatentDiscriminator, noise_levels, weighted_error
from distillkit_dmd2.method import DMD2, DMD2Config
from tests.parts.toys import gradients, step_of, toy_teacher


@pytest.mark.parametrize("settings", [{"gan_weight": 0}, {"critic_gan_weight": 0}])
def test_without_gan_a_step_needs_no_images(settings):
    teacher = toy_teacher()
    recipe = DMD2().recipe(teacher, DMD2Config(**settings))
    assert recipe.needs == {Samples} and [o.name for o in recipe.objectives] == ["distribution_matching"]
    assert "head" not in dict(recipe.learners[0].named_children())
    with torch.no_grad():
        recipe.learners[0].denoiser.model.last.bias.add_(0.1)
    found = gradients(recipe, teacher)
    assert all(any(g.abs().max() > 0 for g in grads.values()) for grads in found.values()) and len(found) == 2
    assert DMD2().recipe(teacher, DMD2Config()).needs == {Samples, Images}


def test_settings_reach_the_recipe():
    config = DMD2Config(
        evaluations=3, updates=7, kl_weight=0.5, gan_weight=0.2, critic_gan_weight=0.3, critic_lr=1e-3, guidance=2,
        level_min=0.5, level_max=0.6,
    )  # fmt: skip
    teacher = toy_teacher("flow")
    recipe = DMD2().recipe(teacher, config)
    kl, adversarial = recipe.objectives
    [critic] = recipe.learners
    assert recipe.student.sampler == RenoisingSampler(levels=teacher.schedule.levels(3))
    assert (recipe.student_every, critic.every, recipe.guidance) == (7, 1, 2)
    assert (kl.weight, kl.guidance, len(kl.times), adversarial.weight, critic.gan_weight) == (0.5, 2, 101, 0.2, 0.3)
    assert critic.optimizer.model_dump(exclude_unset=True) == {"lr": 1e-3}


def test_the_critics_loss_is_both_of_its_parts():
    teacher = toy_teacher("vp")
    recipe = DMD2().recipe(teacher, DMD2Config(critic_gan_weight=0.5))
    [critic], step = recipe.learners, step_of(recipe, teacher, due=False)
    schedule, x, images = teacher.schedule, step.samples, step.images
    t, t_real = (critic.draw_levels(step, f"{name}/level") for name in ("fake", "real"))
    noisy = schedule.add_noise(x, step.normal("fake/noise"), t)
    matching = weighted_error(critic(noisy, t, step.condition), x, schedule.ratio(t) ** -2)
    fake = critic.head(critic.denoiser.features(noisy, t, step.condition))
    noisy = schedule.add_noise(images.sample, step.normal("real/noise"), t_real)
    real = critic.head(critic.denoiser.features(noisy, t_real, images.condition))
    expected = matching + 0.5 * ((1 + fake.exp()).log().mean() + (1 + (-real).exp()).log().mean())
    torch.testing.assert_close(critic.loss(step), expected)
    assert step.logged["std_to_images"] == pytest.approx((x.std() / images.sample.std()).item())
    assert step.logged["critic_accuracy"] == pytest.approx(
        ((real > 0).float().mean() / 2 + (fake < 0).float().mean() / 2).item()
    )


def test_the_students_part_of_the_gan():
    teacher = toy_teacher()
    recipe = DMD2().recipe(teacher, DMD2Config())
    adversarial, step, [critic] = recipe.objectives[1], step_of(recipe, teacher), recipe.learners
    t = critic.draw_levels(step, "gan/level")
    logits = critic.head(critic.features(step.samples, step.normal("gan/noise"), t, step.condition))
    torch.testing.assert_close(adversarial(step), (1 + (-logits).exp()).log().mean())


@pytest.mark.parametrize("schedule", ["edm", "vp", "flow"])
def test_the_gan_keeps_to_its_levels_and_its_loss(schedule):
    teacher = toy_teacher(schedule)
    config = DMD2Config(gan_loss="hinge", gan_level_min=0.5, gan_level_max=0.6, critic_gan_weight=0.5, r1_weight=2.0)
    recipe = DMD2().recipe(teacher, config)
    [critic], step = recipe.learners, step_of(recipe, teacher, due=False)
    levels = {name: critic.draw_gan_levels(step, f"{name}/level") for name in ("judged", "real", "gan")}
    low, high = noise_levels(teacher.schedule)[[500, 600]].tolist()
    assert all(low <= t <= high for found in levels.values() for t in found.tolist())
    x, images = step.samples, step.images
    fake = critic.head(critic.features(x, step.normal("judged/noise"), levels["judged"], step.condition))
    given = (step.normal("real/noise"), levels["real"], images.condition)
    real = critic.head(critic.features(images.sample, *given))
    moved = critic.head(critic.features(images.sample + 0.01 * step.normal("real/nearby"), *given))
    t = critic.draw_levels(step, "fake/level")
    noisy = teacher.schedule.add_noise(x, step.normal("fake/noise"), t)
    matching = weighted_error(critic(noisy, t, step.condition), x, critic.denoiser.loss_weight(t))
    gan = (1 + fake).relu().mean() + (1 - real).relu().mean() + 2 * ((moved - real) / 0.01).square().mean()
    torch.testing.assert_close(critic.loss(step), matching + 0.5 * gan, rtol=1e-3, atol=1e-5)
    logits = critic.head(critic.features(x, step.normal("gan/noise"), levels["gan"], step.condition))
    torch.testing.assert_close(recipe.objectives[1](step), -logits.mean())


def test_the_teachers_features_are_judged_by_a_learner_of_their_own():
    teacher = toy_teacher("flow")
    recipe = DMD2().recipe(teacher, DMD2Config(gan_features="teacher", critic_lr=1e-3))
    fake, judge = recipe.learners
    assert type(fake) is FakeScore and isinstance(judge, LatentDiscriminator)
    assert recipe.objectives[0].fake is fake and recipe.objectives[1].discriminator is judge
    assert all(name.startswith("head.") for name, _ in judge.named_parameters()), "the teacher stays the teacher's"
    step = step_of(recipe, teacher, due=False)
    given = (step.normal("fake/noise"), judge.draw_gan_levels(step, "fake/level"), step.condition)
    made = judge.head(judge.features(step.samples, *given))
    given = (step.normal("real/noise"), judge.draw_gan_levels(step, "real/level"), step.images.condition)
    real = judge.head(judge.features(step.images.sample, *given))
    expected = (1 + made.exp()).log().mean() + (1 + (-real).exp()).log().mean()
    torch.testing.assert_close(judge.loss(step), expected)


@pytest.mark.parametrize("kind", [Critic, LatentDiscriminator])
def test_a_discriminator_reads_the_real_samples_that_its_gan_names(kind):
    teacher, gan = toy_teacher(), Gan(source="pairs")
    made = Critic(teacher, gan_weight=1.0, gan=gan)
    if kind is LatentDiscriminator:
        made = LatentDiscriminator(teacher, levels=made.levels, gan=gan)
    recipe = Recipe(StudentGenerator.from_teacher(teacher), [Adversarial(made)], [made])
    assert recipe.needs == {Samples, Pairs} and made.loss(step_of(recipe, teacher, due=False)).isfinite()


def test_no_level_between_two_is_one_message():
    with pytest.raises(UsageError, match=r"between the shares 0\.8 and 0\.3"):
        DMD2().recipe(toy_teacher(), DMD2Config(gan_level_min=0.8, gan_level_max=0.3))
    with pytest.raises(UsageError, match=r"between the shares 0\.9 and 0\.2"):
        DMD2().recipe(toy_teacher(), DMD2Config(level_min=0.9, level_max=0.2))


def test_logits_need_no_decoder(tiny_teacher):
    critic = Critic(tiny_teacher, gan_weight=0.01)
    passed = []
    for name, module in critic.denoiser.named_modules():
        if ".dec." in name:
            module.register_forward_hook(lambda *_, name=name: passed.append(name))
    x = torch.randn(4, 1, 8, 8, requires_grad=True)
    features = critic.features(x, torch.randn(4, 1, 8, 8), torch.ones(4), Condition(labels=torch.arange(4)))
    logits = critic.head(features)
    assert logits.shape == (4, 1) and not passed
    logits.sum().backward()
    assert x.grad.abs().max() > 0 and all(p.grad is not None for p in critic.head.parameters())


@pytest.fixture
def parts():
    teacher = toy_teacher()
    more = [torch.randn(2, 3, 4, 4) for _ in range(3)]
    condition = Condition(labels=torch.tensor([1, 2]))
    return StudentGenerator.from_teacher(teacher).denoiser, torch.randn(2, 3, 4, 4), condition, lambda k: more[k]


def test_one_level_is_the_one_step_sampler(parts):
    denoiser, noise, condition, renoise = parts
    one, many = OneStep(t=80.0), RenoisingSampler(levels=(80.0,))
    assert torch.equal(one(denoiser, noise, condition), many(denoiser, noise, condition, renoise))


def test_training_ends_after_a_drawn_evaluation_on_the_students_own_steps(parts):
    denoiser, noise, condition, renoise = parts
    sampler = RenoisingSampler(levels=(80.0, 5.0, 0.5))
    calls = []
    handle = denoiser.register_forward_hook(lambda m, a, out: calls.append((a[1][0].item(), out.requires_grad)))
    ends = []
    for uniform in (0.0, 0.34, 0.99):
        calls.clear()
        ends.append(sampler.training_samples(denoiser, noise, condition, renoise, uniform))
        assert [t for t, _ in calls] == [80.0, 5.0, 0.5][: len(ends)]
        assert [grad for _, grad in calls] == [False] * (len(ends) - 1) + [True], "gradient through the last alone"
    handle.remove()
    assert torch.equal(ends[-1], sampler(denoiser, noise, condition, renoise)), "the last is what inference makes"
    with pytest.raises(ValueError, match="renoise"):
        sampler(denoiser, noise, condition)
