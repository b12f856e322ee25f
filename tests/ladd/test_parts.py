"""LADD's losses written out, and what of the teacher its discriminator sees."""

import pytest
import torch

from distillkit import Images, Pairs, Samples
from distillkit.models.build import build_denoiser
from distillkit.testing.teachers import conditional, text_to_latent
from distillkit_ladd.method import LADD, LADDConfig
from tests.conftest import TINY_NETWORK
from tests.parts.toys import gradients, step_of, toy_teacher


@pytest.mark.parametrize(("schedule", "shape"), [("edm", "images"), ("vp", "points"), ("flow", "video")])
def test_losses_are_those_of_the_paper(schedule, shape):
    """-D(x_t) for the student; max(0, 1 + D(x_t)) + max(0, 1 - D(y_t)) + gamma |dD/df|^2, as in ADD (2023)."""
    teacher = toy_teacher(schedule, shape)
    recipe = LADD().recipe(teacher, LADDConfig(level_mean=0.5, level_std=0.7, r1_weight=2.0, discriminator_lr=1e-3))
    [adversarial], [judge] = recipe.objectives, recipe.learners
    assert recipe.needs == {Samples, Pairs} and judge.optimizer.lr == 1e-3 and recipe.student_every == 1
    step = step_of(recipe, teacher)
    x, pairs = step.samples, step.pairs

    def logits(name, sample, condition):
        t = judge.levels(step.uniform(f"{name}/level"))
        noisy = teacher.schedule.add_noise(sample, step.normal(f"{name}/noise"), t)
        [found] = teacher.denoiser.features(noisy, t, condition, ["bottleneck"])
        found = found.detach().requires_grad_() if name == "real" else found
        return judge.head([found]), found

    torch.testing.assert_close(adversarial(step), -logits("gan", x, step.condition)[0].mean())
    fake, _ = logits("fake", x, step.condition)
    real, features = logits("real", pairs.sample, pairs.condition)
    [gradient] = torch.autograd.grad(real.mean(1).sum(), features, create_graph=True)
    penalty = gradient.square().flatten(1).sum(1).mean()
    expected = (1 + fake).relu().mean() + (1 - real).relu().mean() + 2 * penalty
    torch.testing.assert_close(judge.loss(step), expected)
    assert {name.partition(".")[0] for name, _ in judge.named_parameters()} == {"head"}
    assert all(any(g.abs().max() > 0 for g in grads.values()) for grads in gradients(recipe, teacher).values())
    assert all(p.grad is None for p in teacher.denoiser.parameters())


def test_levels_are_logit_normal_in_a_flows_time():
    teacher = toy_teacher("flow")
    [judge] = LADD().recipe(teacher, LADDConfig(level_mean=1.0, level_std=0.5)).learners
    uniform = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    expected = torch.sigmoid(1 + 0.5 * torch.special.ndtri(uniform)).float()
    torch.testing.assert_close(judge.levels(uniform), expected)


def test_each_chosen_block_has_a_head_that_judges_its_places():
    teacher = conditional()
    [judge] = LADD().recipe(teacher, LADDConfig(depths=(0, 0.5, 0.5, 1))).learners
    assert len(judge.layers) == len(judge.head.heads) == 3
    blocks = [dict(teacher.denoiser.named_modules())[name] for name in judge.layers]
    assert blocks == [teacher.denoiser.model.blocks[k] for k in (0, 2, 4)]
    [judge] = LADD().recipe(text_to_latent(), LADDConfig()).learners
    assert judge.layers == ("model.unet.down_blocks.1", "model.unet.mid_block", "model.unet.up_blocks.0")


def test_blocks_are_in_the_order_in_which_they_are_evaluated():
    denoiser, teacher = build_denoiser(TINY_NETWORK), conditional()
    seen = []
    for block in denoiser.model.blocks:
        block.register_forward_hook(lambda module, *rest: seen.append(module))
    x = torch.zeros(1, 1, 8, 8)
    denoiser(x, torch.ones(1), teacher.conditioner.encode(torch.zeros(1, dtype=torch.int64)))
    assert seen == denoiser.model.blocks and len(seen) > 3
    assert toy_teacher().denoiser.layers_at((0.1, 0.9)) == ["bottleneck"], "of networks that name none"


def test_real_images_in_the_place_of_the_teachers_samples():
    recipe = LADD().recipe(toy_teacher(), LADDConfig(source="images"))
    assert recipe.needs == {Samples, Images}
