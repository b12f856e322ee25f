"""Progressive distillation against the reference implementation."""

import pytest
import torch

from distillkit import Condition, StudentGenerator, TeacherSpec
from distillkit.diffusion import WEIGHTINGS, EulerSampler
from distillkit_progressive.halving import Halving
from tests.conftest import denoiser_of

SPEC = TeacherSpec(name="golden", shape=(3, 16, 16), num_classes=10, network={})


@pytest.fixture
def parts(golden):
    reference, adm = golden("consistency_progressive"), golden("edm_adm_small")
    teacher, student = (denoiser_of(adm.description["constructor"]) for _ in range(2))
    teacher.load_state_dict(adm.part("net."))
    student.load_state_dict(reference.part("student."))
    condition = Condition(labels=reference.tensors["class_labels"].argmax(1))
    return reference.tensors, teacher, student, condition


@pytest.mark.parametrize("weighting", ["uniform", "karras", "snr+1", "truncated-snr"])
def test_losses_and_gradients(parts, weighting):
    t, teacher, student, condition = parts
    sampler = EulerSampler.karras(4, sigma_min=0.002, sigma_max=80.0)
    halving = Halving(StudentGenerator(teacher, sampler, SPEC), WEIGHTINGS[weighting], source="images")
    fine = torch.tensor(sampler.refined().sigmas)
    a, b, c = (fine[2 * t["index_pd"] + k] for k in range(3))
    x = t["x_start"] + a.view(-1, 1, 1, 1) * t["noise"]
    target = halving.target(x, a, b, c, condition)
    error = (student(x, a, condition) - target).square().mean(dim=(1, 2, 3))
    values = halving.weighting(a, 0.5) * error
    torch.testing.assert_close(values, t[f"pd_{weighting}.loss"], rtol=1e-3, atol=1e-6)
    student.requires_grad_(True)
    (halving.weighting(a, 0.5) * (student(x, a, condition) - target).square().mean(dim=(1, 2, 3))).mean().backward()
    for parameter, value in student.named_parameters():
        if (key := f"pd_{weighting}.grad.{parameter}") in t:
            assert (value.grad - t[key]).abs().max() <= 1e-3 * t[key].abs().max(), key


def test_sampler(parts):
    t, _, student, condition = parts
    sampler = EulerSampler.karras(4, sigma_min=0.002, sigma_max=80.0)
    torch.testing.assert_close(torch.tensor(sampler.sigmas), t["pd_sigmas_4"][:5].float(), rtol=1e-5, atol=0)
    with torch.no_grad():
        sample = sampler(student, t["latents"], condition)
    torch.testing.assert_close(sample, t["pd_sample_4"].float(), rtol=1e-3, atol=1e-3)
    assert sampler.steps == 4
    torch.testing.assert_close(
        torch.tensor(sampler.refined().sigmas),
        torch.tensor(EulerSampler.karras(8, sigma_min=0.002, sigma_max=80.0).sigmas),
    )
