"""Consistency distillation and training against the reference implementation."""

import pytest
import torch

from distillkit import ClassLabels, Condition, Images, Step, StudentGenerator, Teacher, TeacherSpec
from distillkit.diffusion import (
    WEIGHTINGS,
    ConsistencySampler,
    EDMSchedule,
    KarrasBoundary,
    consistency_function,
    karras_sigmas,
)
from distillkit.parts import NamedDistance
from distillkit_consistency.consistency import ConsistencyLoss
from distillkit_consistency.growth import Growth
from tests.conftest import denoiser_of

SPEC = TeacherSpec(name="golden", shape=(3, 16, 16))


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


class Replay(Step):
    """A step whose data and draws are the golden's; `places` are the numbers of the levels out of `count`."""

    def __init__(self, t, student, condition, places, count):
        self.student, self.device, self._t, self.progress = student, torch.device("cpu"), t, 0.0
        self._batches, self._uniform = {Images: Images(t["x_start"], condition)}, (places + 0.5) / count
        self._logged = {}

    def normal(self, purpose):
        return self._t["noise"]

    def uniform(self, purpose):
        return self._uniform


@pytest.mark.parametrize(
    ("name", "teacher", "weighting"),
    [("cd_uniform", True, "uniform"), ("cd_karras", True, "karras"), ("ct_uniform", False, "uniform")],
)
def test_the_whole_objective(networks, name, teacher, weighting):
    t, made, condition = networks
    loss = ConsistencyLoss(
        made["student"], Teacher(made["teacher"], SPEC, ClassLabels(classes=10)) if teacher else None,
        NamedDistance("l2"), WEIGHTINGS[weighting], growth=Growth(None, 40, 0.95), source="images",
    )  # fmt: skip
    loss.neighbours.target.network.load_state_dict(made["target"].state_dict())
    made["student"].requires_grad_(True)
    student = StudentGenerator(made["student"], ConsistencySampler(levels=(80.0,)), SPEC.shape)
    value = loss(Replay(t, student, condition, t["index_cd"], 39))
    torch.testing.assert_close(value, t[f"{name}.loss"].mean(), rtol=1e-3, atol=1e-6)
    value.backward()
    compared = 0
    for parameter, found in made["student"].named_parameters():
        if (key := f"{name}.grad.{parameter}") in t:
            assert (found.grad - t[key]).abs().max() <= 1e-3 * t[key].abs().max(), key
            compared += 1
    assert compared
    assert all(p.grad is None for p in loss.neighbours.target.network.parameters())


def test_boundary_condition(networks):
    t, made, condition = networks
    how = {"schedule": EDMSchedule(), "boundary": KarrasBoundary()}
    with torch.no_grad():
        out = consistency_function(made["student"], t["x_boundary"], t["sigma"], condition, **how)
        at_min = consistency_function(made["student"], t["x_boundary"], torch.full((4,), 0.002), condition, **how)
    torch.testing.assert_close(out, t["student_denoised_boundary"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(at_min, t["x_boundary"], rtol=1e-5, atol=1e-5)


def test_sampling_with_fresh_noise_in_between(networks):
    t, made, condition = networks
    sigmas = karras_sigmas(40)
    sampler = ConsistencySampler(levels=(sigmas[0].item(), sigmas[22].item()), clip=True)
    with torch.no_grad():
        sample = sampler(made["student"], t["latents"], condition, lambda k: t[f"cm_multistep_noise_{k}"])
    torch.testing.assert_close(sample, t["cm_multistep_sample"], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="renoise"):
        sampler(made["student"], t["latents"], condition)
    assert len(sampler.with_nfe(4, made["student"]).levels) == 4
    assert sampler.with_nfe(2, made["student"]) is sampler, "levels that were chosen stay"
    assert sampler.with_nfe(1, made["student"]).levels == (pytest.approx(80),)
