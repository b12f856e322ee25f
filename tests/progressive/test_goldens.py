"""Progressive distillation against the reference implementation."""

import pytest
import torch

from distillkit import Condition, Images, Step, StudentGenerator
from distillkit.diffusion import WEIGHTINGS, EDMSchedule, EulerSampler
from distillkit_progressive.halving import Halving
from tests.conftest import denoiser_of

SHAPE = (3, 16, 16)


@pytest.fixture
def parts(golden):
    reference, adm = golden("consistency_progressive"), golden("edm_adm_small")
    teacher, student = (denoiser_of(adm.description["constructor"]) for _ in range(2))
    teacher.load_state_dict(adm.part("net."))
    student.load_state_dict(reference.part("student."))
    condition = Condition(labels=reference.tensors["class_labels"].argmax(1))
    return reference.tensors, teacher, student, condition


class Replay(Step):
    """A step whose data and draws are the golden's; levels are number `index` of `count`."""

    def __init__(self, t, student, condition, count):
        self.student, self.device, self._t = student, torch.device("cpu"), t
        self._batches = {Images: Images(t["x_start"], condition)}
        self._uniform = (t["index_pd"] + 0.5) / count

    def normal(self, purpose):
        return self._t["noise"]

    def uniform(self, purpose):
        return self._uniform


@pytest.mark.parametrize("weighting", ["uniform", "karras", "snr+1", "truncated-snr"])
def test_the_whole_objective(parts, weighting):
    t, teacher, network, condition = parts
    sampler = EulerSampler.on_grid(4, EDMSchedule())
    halving = Halving(StudentGenerator(teacher, sampler, SHAPE), WEIGHTINGS[weighting], source="images")
    student = StudentGenerator(network.requires_grad_(True), sampler, SHAPE)
    assert len(t["index_pd"].unique()) > 1, "several levels"
    loss = halving(Replay(t, student, condition, 4))
    torch.testing.assert_close(loss, t[f"pd_{weighting}.loss"].mean(), rtol=1e-3, atol=1e-6)
    loss.backward()
    compared = 0
    for parameter, value in network.named_parameters():
        if (key := f"pd_{weighting}.grad.{parameter}") in t:
            assert (value.grad - t[key]).abs().max() <= 1e-3 * t[key].abs().max(), key
            compared += 1
    assert compared
    assert all(p.grad is None for p in halving.predecessor.parameters())


def test_sampler(parts):
    t, _, student, condition = parts
    sampler = EulerSampler.on_grid(4, EDMSchedule())
    torch.testing.assert_close(torch.tensor(sampler.levels), t["pd_sigmas_4"][:5].float(), rtol=1e-5, atol=0)
    with torch.no_grad():
        sample = sampler(student, t["latents"], condition)
    torch.testing.assert_close(sample, t["pd_sample_4"].float(), rtol=1e-3, atol=1e-3)
    assert sampler.steps == 4
