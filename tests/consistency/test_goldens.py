"""Consistency distillation and training against the reference implementation."""

import pytest
import torch

from distillkit import Condition, StudentGenerator, Teacher, TeacherSpec
from distillkit.diffusion import WEIGHTINGS, ConsistencySampler, consistency_function, karras_sigmas, l2
from distillkit_consistency.consistency import ConsistencyLoss
from tests.conftest import denoiser_of

SPEC = TeacherSpec(name="golden", shape=(3, 16, 16), num_classes=10, network={})


@pytest.fixture
def networks(golden):
    """(reference tensors, teacher, student and target denoisers, condition)."""
    reference, adm = golden("consistency_progressive"), golden("edm_adm_small")
    made = {}
    for name, state in (
        ("teacher", adm.part("net.")), ("student", reference.part("student.")), ("target", reference.part("target.")),
    ):  # fmt: skip
        made[name] = denoiser_of(adm.description["constructor"])
        made[name].load_state_dict(state)
    condition = Condition(labels=reference.tensors["class_labels"].argmax(1))
    return reference.tensors, made, condition


def objective(made, *, teacher, weighting):
    student = StudentGenerator(made["student"], ConsistencySampler(sigmas=(80.0,)), SPEC)
    loss = ConsistencyLoss(
        student, Teacher(made["teacher"], SPEC) if teacher else None, l2, WEIGHTINGS[weighting], levels=40, decay=0.95,
        source="images",
    )  # fmt: skip
    loss.target.network.load_state_dict(made["target"].state_dict())
    return loss


@pytest.mark.parametrize(
    ("name", "teacher", "weighting"),
    [("cd_uniform", True, "uniform"), ("cd_karras", True, "karras"), ("ct_uniform", False, "uniform")],
)
def test_losses_and_gradients(networks, name, teacher, weighting):
    t, made, condition = networks
    loss = objective(made, teacher=teacher, weighting=weighting)
    made["student"].requires_grad_(True)
    sigmas = karras_sigmas(40).float()
    index = t["index_cd"]
    values = loss.loss(made["student"], t["x_start"], t["noise"], sigmas[index], sigmas[index + 1], condition)
    torch.testing.assert_close(values, t[f"{name}.loss"], rtol=1e-3, atol=1e-6)
    values.mean().backward()
    for parameter, value in made["student"].named_parameters():
        if (key := f"{name}.grad.{parameter}") in t:
            error = (value.grad - t[key]).abs().max()
            assert error <= 1e-3 * t[key].abs().max(), key
    assert all(p.grad is None for p in made["target"].parameters())


def test_boundary_condition(networks):
    t, made, condition = networks
    with torch.no_grad():
        out = consistency_function(
            made["student"], t["x_boundary"], t["sigma"], condition, sigma_min=0.002, sigma_data=0.5
        )
        at_min = consistency_function(
            made["student"], t["x_boundary"], torch.full((4,), 0.002), condition, sigma_min=0.002, sigma_data=0.5
        )
    torch.testing.assert_close(out, t["student_denoised_boundary"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(at_min, t["x_boundary"], rtol=1e-5, atol=1e-5)


def test_sampling_with_fresh_noise_in_between(networks):
    t, made, condition = networks
    sigmas = karras_sigmas(40)
    sampler = ConsistencySampler(sigmas=(sigmas[0].item(), sigmas[22].item()), clip=True)
    with torch.no_grad():
        sample = sampler(made["student"], t["latents"], condition, lambda k: t[f"cm_multistep_noise_{k}"])
    torch.testing.assert_close(sample, t["cm_multistep_sample"], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="renoise"):
        sampler(made["student"], t["latents"], condition)
    assert len(sampler.with_nfe(4).sigmas) == 4 and sampler.with_nfe(1).sigmas[0] == pytest.approx(80)
