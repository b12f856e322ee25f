"""DMD's losses and gradients against the reference implementation."""

import torch

from distillkit import ClassLabels, Condition, Step, Teacher, TeacherSpec
from distillkit.parts import DistributionMatching, FakeScore, kl_gradient, noise_levels, residual
from tests.conftest import denoiser_of

CLOSE = {"rtol": 1e-3, "atol": 1e-6}


def test_gradient_and_loss_from_stored_predictions(golden):
    t = golden("dmd_kl").tensors
    torch.testing.assert_close(kl_gradient(t["image"], t["pred_real"], t["pred_fake"]), t["grad"], **CLOSE)
    weight = residual(t["image"], t["pred_real"])
    torch.testing.assert_close(weight.flatten(), t["weight_factor"].flatten(), **CLOSE)


class Replay(Step):
    """A step whose samples and draws are the golden's; `times` is the table that levels are drawn from."""

    def __init__(self, t, times):
        labels = t["class_labels"].argmax(1)
        self.samples, self.condition = t["image"].clone().requires_grad_(), Condition(labels=labels)
        self._t, self._logged, self.device = t, {}, torch.device("cpu")
        places = torch.stack([(times - sigma).abs().argmin() for sigma in t["sigma"]])
        self._uniform = (places + 0.5) / len(times)

    def normal(self, purpose):
        return self._t["noise"]

    def uniform(self, purpose):
        return self._uniform


def roles(golden):
    """The golden's teacher and fake score in our classes."""
    network, t = golden("edm_adm_small"), golden("dmd_kl")
    constructor = network.description["constructor"]
    denoiser, fake = denoiser_of(constructor), denoiser_of(constructor)
    denoiser.load_state_dict(network.part("net."))
    fake.load_state_dict(t.part("fake_net."))
    teacher = Teacher(denoiser, TeacherSpec(name="golden", shape=(3, 16, 16)), ClassLabels(classes=10))
    return teacher, FakeScore(fake), t


def test_whole_kl_objective(golden):
    teacher, fake, t = roles(golden)
    objective = DistributionMatching(teacher, fake)
    step = Replay(t.tensors, objective.times)
    loss = objective(step)
    loss.backward()
    torch.testing.assert_close(loss, t.tensors["loss"][0], **CLOSE)
    torch.testing.assert_close(step.samples.grad, t.tensors["dloss_dimage"], rtol=1e-3, atol=1e-5)
    assert not any(p.grad is not None for p in (*fake.parameters(), *teacher.denoiser.parameters()))
    torch.testing.assert_close(step.logged["kl_gradient_rms"], t.tensors["grad"].square().mean().sqrt(), **CLOSE)
    real, made = (((t.tensors[f"pred_{name}"] - t.tensors["image"]) ** 2).mean() for name in ("real", "fake"))
    torch.testing.assert_close(step.logged["fake_to_real_error"], made / real, **CLOSE)


def test_the_kl_keeps_to_its_levels(golden):
    teacher, fake, _ = roles(golden)
    grid = noise_levels(teacher.schedule)
    assert torch.equal(DistributionMatching(teacher, fake).times, grid[20:981])
    assert torch.equal(DistributionMatching(teacher, fake, levels=(0.2, 0.7)).times, grid[200:701])


def test_whole_fake_score_loss(golden):
    teacher, fake, t = roles(golden)
    step = Replay(t.tensors, noise_levels(teacher.schedule).flip(0))
    loss = fake.loss(step)
    loss.backward()
    torch.testing.assert_close(loss, t.tensors["fake_loss"][0], **CLOSE)
    assert step.samples.grad is None, "the fake score's loss must not reach the student"
    for name, expected in t.part("fake_grad.").items():
        found = fake.denoiser.get_parameter(name).grad
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    norm = torch.stack([p.grad.norm() for p in fake.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(norm, t.tensors["fake_grad_norm"][0], **CLOSE)
