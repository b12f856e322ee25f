"""DMD's losses and gradients against the reference implementation."""

import torch

from distillkit import Condition, Step, Teacher, TeacherSpec
from distillkit.diffusion import score_matching_loss
from distillkit_dmd.distribution_matching import DistributionMatching, kl_gradient
from distillkit_dmd.fake_score import FakeScore
from tests.conftest import denoiser_of

CLOSE = {"rtol": 1e-3, "atol": 1e-6}


def test_gradient_and_loss_from_stored_predictions(golden):
    t = golden("dmd_kl").tensors
    image = t["image"].clone().requires_grad_()
    gradient = kl_gradient(t["image"], t["pred_real"], t["pred_fake"])
    torch.testing.assert_close(gradient, t["grad"], **CLOSE)
    weight = (t["image"] - t["pred_real"]).abs().mean((1, 2, 3))
    torch.testing.assert_close(weight, t["weight_factor"].flatten(), **CLOSE)
    loss = 0.5 * (image - (image - gradient).detach()).square().mean()
    loss.backward()
    torch.testing.assert_close(loss, t["loss"][0], **CLOSE)
    torch.testing.assert_close(image.grad, t["dloss_dimage"], **CLOSE)


class Replay(Step):
    """A step whose samples and draws are the golden's."""

    def __init__(self, t, objective):
        labels = t["class_labels"].argmax(1)
        self.samples, self.condition = t["image"].clone().requires_grad_(), Condition(labels=labels)
        self._t, self._logged, self.device = t, {}, torch.device("cpu")
        # The uniform that selects the golden's level out of the objective's own table.
        levels = torch.stack([(objective.sigmas - s).abs().argmin() for s in t["sigma"]])
        self._uniform = (levels + 0.5) / len(objective.sigmas)

    def normal(self, purpose):
        return self._t["noise"]

    def uniform(self, purpose):
        return self._uniform


def roles(golden):
    """The golden's teacher and fake score in our classes."""
    network, t = golden("edm_adm_small"), golden("dmd_kl")
    constructor = network.description["constructor"]
    spec = TeacherSpec(name="golden", shape=(3, 16, 16), num_classes=10, network={})
    denoiser, fake = denoiser_of(constructor), denoiser_of(constructor)
    denoiser.load_state_dict(network.part("net."))
    fake.load_state_dict(t.part("fake_net."))
    teacher = Teacher(denoiser, spec)
    return teacher, FakeScore(fake, teacher), t


def test_whole_kl_objective(golden):
    teacher, fake, t = roles(golden)
    objective = DistributionMatching(teacher, fake)
    step = Replay(t.tensors, objective)
    loss = objective(step)
    loss.backward()
    torch.testing.assert_close(loss, t.tensors["loss"][0], **CLOSE)
    torch.testing.assert_close(step.samples.grad, t.tensors["dloss_dimage"], rtol=1e-3, atol=1e-5)
    assert not any(p.grad is not None for p in (*fake.parameters(), *teacher.denoiser.parameters()))
    assert step.logged["kl_gradient_rms"] > 0


def test_whole_fake_score_loss(golden):
    _, fake, t = roles(golden)
    step = Replay(t.tensors, fake)
    loss = fake.loss(step)
    loss.backward()
    torch.testing.assert_close(loss, t.tensors["fake_loss"][0], **CLOSE)
    assert step.samples.grad is None, "the fake score's loss must not reach the student"
    for name, expected in t.part("fake_grad.").items():
        found = fake.denoiser.get_parameter(name).grad
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    norm = torch.stack([p.grad.norm() for p in fake.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(norm, t.tensors["fake_grad_norm"][0], **CLOSE)


def test_score_matching_loss_is_zero_at_the_truth():
    x = torch.randn(3, 1, 4, 4)
    assert score_matching_loss(x, x, torch.ones(3), 0.5) == 0
