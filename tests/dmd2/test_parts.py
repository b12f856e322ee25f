"""DMD2's parts: the critic, the two time-scale rule, the multi-step student."""

import pytest
import torch

from distillkit import Condition, OneStep, StudentGenerator
from distillkit.diffusion import RenoisingSampler
from distillkit_dmd2.critic import Critic, head_for
from distillkit_dmd2.method import DMD2, DMD2Config


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 64])
def test_the_head_ends_in_one_logit_for_any_bottleneck(size):
    head = head_for(8, size)
    assert head(torch.randn(3, 8, size, size)).shape == (3, 1, 1, 1)
    if size == 8:  # the paper's: 4x4 stride 2, 4x4 stride 4, 1x1
        assert [(m.kernel_size[0], m.stride[0]) for m in head if hasattr(m, "stride")] == [(4, 2), (4, 4), (1, 1)]


def test_without_gan_no_images_are_needed(tiny_teacher):
    recipe = DMD2().recipe(tiny_teacher, DMD2Config(gan_weight=0))
    assert recipe.needs == {"samples"} and [o.name for o in recipe.objectives] == ["distribution_matching"]
    assert DMD2().recipe(tiny_teacher, DMD2Config()).needs == {"samples", "images"}


def test_the_critic_is_updated_more_often_than_the_student(tiny_teacher):
    recipe = DMD2().recipe(tiny_teacher, DMD2Config(updates=5))
    assert recipe.student_every == 5 and recipe.learners[0].every == 1


def test_the_critics_logits_move_the_student_and_its_own_weights(tiny_teacher):
    critic = Critic(tiny_teacher, gan_weight=0.01)
    x = torch.randn(4, 1, 8, 8, requires_grad=True)
    condition = Condition(labels=torch.arange(4))
    denoised, logits = critic.logits(x, torch.ones(4), torch.randn(4, 1, 8, 8), condition)
    assert denoised.shape == x.shape and logits.shape == (4,)
    logits.sum().backward()
    assert x.grad.abs().max() > 0 and all(p.grad is not None for p in critic.head.parameters())
    decoder = [p for name, p in critic.denoiser.named_parameters() if ".dec." in name]
    assert decoder and all(p.grad is None for p in decoder), "the bottleneck comes before the decoder"


@pytest.fixture
def parts(tiny_teacher):
    generator = StudentGenerator.from_teacher(tiny_teacher)
    noise = torch.randn(2, 1, 8, 8)
    more = [torch.randn(2, 1, 8, 8) for _ in range(3)]
    return generator.denoiser, noise, Condition(labels=torch.tensor([1, 2])), lambda k: more[k]


def test_one_level_is_the_one_step_sampler(parts):
    denoiser, noise, condition, renoise = parts
    one, many = OneStep(sigma=80.0), RenoisingSampler(sigmas=(80.0,))
    assert torch.equal(one(denoiser, noise, condition), many(denoiser, noise, condition, renoise))


def test_training_ends_after_a_drawn_evaluation_on_the_students_own_steps(parts):
    denoiser, noise, condition, renoise = parts
    sampler = RenoisingSampler(sigmas=(80.0, 5.0, 0.5))
    calls = []
    handle = denoiser.register_forward_hook(lambda m, a, out: calls.append((a[1][0].item(), out.requires_grad)))
    ends = []
    for uniform in (0.0, 0.34, 0.99):
        calls.clear()
        ends.append(sampler.training_samples(denoiser, noise, condition, renoise, uniform))
        assert [sigma for sigma, _ in calls] == [80.0, 5.0, 0.5][: len(ends)]
        assert [grad for _, grad in calls] == [False] * (len(ends) - 1) + [True], "gradient through the last alone"
    handle.remove()
    assert torch.equal(ends[-1], sampler(denoiser, noise, condition, renoise)), "the last is what inference makes"
    with pytest.raises(ValueError, match="fresh noise"):
        sampler(denoiser, noise, condition)


def test_a_student_of_two_evaluations_is_trained_and_sampled(inside, tiny_teacher_folder):
    run = inside(
        "run", "dmd2", "--teacher", tiny_teacher_folder, "--evaluations", "2", "--updates", "2", "--duration", "64",
        "--batch", "16", "--evaluation-samples", "100", "--output-dir", "run", "--quiet",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "│   2 │" in run.stdout, "two evaluations, counted"
    one = inside("sample", "run", "--num", "300", "--output", "a")
    assert one.returncode == 0


def test_a_sample_does_not_depend_on_the_batch_it_is_made_in(tiny_teacher, tmp_path):
    from distillkit import load_student
    from distillkit.students.artifact import StudentDescription, save_student

    sampler = RenoisingSampler(sigmas=(80.0, 2.0))
    student = StudentGenerator.from_teacher(tiny_teacher, sampler).eval()
    description = StudentDescription(
        distillkit="0", method="dmd2", method_package="", settings={}, teacher=tiny_teacher.spec,
        sampler=sampler.model_dump(mode="json"), nfe=2, images_seen=0,
    )  # fmt: skip
    save_student(tmp_path, student, description)
    loaded = load_student(tmp_path)
    whole, parts = loaded(10, seed=3), loaded(10, seed=3, batch=4)
    assert (whole.int() - parts.int()).abs().max() <= 1
