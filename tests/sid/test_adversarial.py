"""SiDA against the authors' code on stored numbers, and its parts."""

import pytest
import torch

from distillkit import Images, Samples
from distillkit.parts import Critic, discriminator_loss, weighted_error
from distillkit_sid.adversarial import ChannelMean, SiDA, SiDAConfig, fakeness
from distillkit_sid.score_identity import identity_loss
from tests.parts.toys import gradients, step_of, toy_teacher


def test_the_students_loss_and_gradients_are_those_of_the_authors_code(golden):
    t = golden("sida").tensors
    for k in range(len(t["x"])):  # sample by sample: theirs multiplies means over a GPU's batch
        given = {name: t[name][k : k + 1].clone().requires_grad_() for name in ("x", "real", "fake", "logits")}
        x, real, fake, logits = given.values()
        loss = 50 * x.numel() * (identity_loss(x, real, fake, 1.2) + 1e-4 * fakeness(x, real, logits))
        torch.testing.assert_close(loss, t["total"][k], rtol=1e-5, atol=1e-3)
        loss.backward()
        for name, value in given.items():
            torch.testing.assert_close(value.grad, t[f"g.{name}"][k : k + 1], rtol=1e-4, atol=1e-3)


def test_the_critics_loss_is_that_of_the_authors_code(golden):
    t = golden("sida").tensors
    for k in range(len(t["x"])):
        x, denoised, sigma = t["x"][k : k + 1], t["denoised"][k : k + 1], t["sigma"][k : k + 1]
        weight = sigma**-2 + 0.5**-2
        gan_weight = weight.item() / (2 * x.numel())
        gan = discriminator_loss(t["fake_logits"][k : k + 1], t["real_logits"][k : k + 1])
        found = x.numel() * (weighted_error(denoised, x, weight) + gan_weight * gan)
        torch.testing.assert_close(found, t["critic"][k], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("schedule", ["edm", "vp", "flow"])
def test_real_images_have_the_noise_and_levels_of_the_students_samples(schedule):
    teacher = toy_teacher(schedule)
    config = SiDAConfig(critic_gan_weight=0.5, gan_weight=0.1, alpha=0.7, guidance=2.0)
    recipe = SiDA().recipe(teacher, config)
    [objective], [critic] = recipe.objectives, recipe.learners
    assert isinstance(critic, Critic) and recipe.needs == {Samples, Images} and not list(critic.head.parameters())
    step = step_of(recipe, teacher, due=False)
    t, noise = critic.draw_levels(step, "fake/level"), step.normal("fake/noise")

    def logits(x, noise, t, condition):
        [features] = critic.denoiser.features(teacher.schedule.add_noise(x, noise, t), t, condition)
        return features.mean(1).flatten(1)

    denoised = critic(teacher.schedule.add_noise(step.samples, noise, t), t, step.condition)
    fake, real = (
        logits(x, noise, t, condition)
        for x, condition in ((step.samples, step.condition), (step.images.sample, step.images.condition))
    )
    matching = weighted_error(denoised, step.samples, critic.denoiser.loss_weight(t))
    gan = (1 + fake.exp()).log().mean() + (1 + (-real).exp()).log().mean()
    torch.testing.assert_close(critic.loss(step), matching + 0.5 * gan)
    t, noise = step.drawn_from(objective.times, "level"), step.normal("level/noise")
    noisy = teacher.schedule.add_noise(step.samples, noise, t)
    denoised = teacher(noisy, t, step.condition, 2.0)
    judged = fakeness(step.samples, denoised, logits(step.samples, noise, t, step.condition))
    plain = identity_loss(step.samples, denoised, critic(noisy, t, step.condition), 0.7)
    torch.testing.assert_close(objective(step), plain + 0.1 * judged)
    assert all(any(g.abs().max() > 0 for g in grads.values()) for grads in gradients(recipe, teacher).values())


@pytest.mark.parametrize(("shape", "places"), [((5,), 1), ((7, 5), 7), ((5, 2, 3), 6), ((5, 2, 3, 2), 12)])
def test_a_place_is_judged_by_the_mean_of_its_channels(shape, places):
    features = torch.randn(3, *shape)
    found = ChannelMean(features.shape)(features).flatten(1)
    assert found.shape == (3, places)
    channels = features if len(shape) == 2 else features.movedim(1, -1)
    torch.testing.assert_close(found, channels.mean(-1).reshape(3, -1))
