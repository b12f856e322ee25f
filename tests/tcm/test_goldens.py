"""Truncated consistency against the authors' code."""

import pytest
import torch

from distillkit import Condition, Images, Stage, Step, StudentGenerator
from distillkit.diffusion import ConsistencySampler, EDMSchedule
from distillkit.parts import Neighbours, ShrinkingStep
from distillkit_tcm.levels import TruncatedRange, WholeRange, student_t_between
from distillkit_tcm.truncated import TRUNCATED, TruncatedConsistency
from tests.conftest import denoiser_of

SCHEDULE = EDMSchedule(sigma_min=1e-6)
CASES = {
    "default": (1 - 0.999, 0.0, "inverse-step"),
    "c_out": (1 - 0.9961, 0.06, "karras"),
    "wide": (0.25, 0.0, "inverse-step"),
}


class Given(TruncatedRange):
    """The golden's levels in the place of draws."""

    def __call__(self, step, schedule, first):
        s = torch.where(self.at_boundary(step.indices, step.before), torch.full_like(step.t, self.boundary), step.t)
        return s, self.step(s, 1.0, 1e-6)


class Replay(Step):
    """A step whose data and draws are the golden's; the first sample is at t'."""

    def __init__(self, given, student, condition, t):
        self.student, self.device, self.stage, self.t = student, torch.device("cpu"), Stage(TRUNCATED), t
        self._batches, self._noise, self._logged = {Images: Images(given["x_start"], condition)}, given["noise"], {}
        self.indices, self.index, self.batch = [3, 0, 1, 2], 0, 4

    def normal(self, purpose):
        return self._noise


@pytest.mark.parametrize("name", CASES)
def test_the_whole_objective(golden, name):
    reference, adm, t = golden("consistency_progressive"), golden("edm_adm_small"), golden("tcm").tensors
    student = denoiser_of(adm.description["constructor"]).requires_grad_(True)
    student.load_state_dict(reference.part("student."))
    student.schedule = SCHEDULE
    share, c, weighting = CASES[name]
    step = ShrinkingStep(1, q=1 / share)
    objective = TruncatedConsistency(
        Neighbours(student, None), student, WholeRange(step, -1.1, 2.0), Given(step, 1.0, 0.25, 0.0, 0.2, 0.01),
        boundary_weight=0.1, weighting=weighting, c=c, source="images",
    )  # fmt: skip
    objective.first.load_state_dict(reference.part("target."))
    condition = Condition(labels=reference.tensors["class_labels"].argmax(1))
    generator = StudentGenerator(student, ConsistencySampler(levels=(80.0,)), (3, 16, 16))
    loss = objective(Replay(reference.tensors, generator, condition, t[f"{name}.t"]))
    torch.testing.assert_close(loss.double(), t[f"{name}.total"], rtol=1e-3, atol=0)
    loss.backward()
    compared = [key for key in t if key.startswith(f"{name}.grad.")]
    found = dict(student.named_parameters())
    for key in compared:
        gradient = found[key.removeprefix(f"{name}.grad.")].grad
        # Ends a thousandth of a level apart differ by little more than float32's rounding.
        assert (gradient - t[key]).abs().max() <= 3e-3 * t[key].abs().max(), key
    assert len(compared) == 2 and all(p.grad is None for p in objective.first.parameters())


@pytest.mark.parametrize("name", ["paper", "other"])
def test_levels_are_those_of_students_t(golden, name):
    t = golden("tcm").tensors
    mean, std, df, low, high = t[f"quantiles.{name}.arguments"].tolist()
    found = student_t_between(t["quantiles.uniform"], low, high, mean=mean, std=std, df=df)
    torch.testing.assert_close(found, t[f"quantiles.{name}"], rtol=1e-4, atol=0)
