"""ECT against the authors' code."""

import pytest
import torch

from distillkit import Condition, Images, Step, StudentGenerator
from distillkit.diffusion import ConsistencySampler, EDMSchedule
from distillkit.parts import Neighbours, ShrinkingStep, ratio_range
from distillkit_ect.curricula import Continuous
from distillkit_ect.tuning import ConsistencyTuning
from tests.conftest import denoiser_of

SCHEDULE = EDMSchedule(sigma_min=1e-6)
MEAN, STD = -1.1, 2.0
CASES = {
    "first": (ShrinkingStep(8), 0, 0.0),
    "late": (ShrinkingStep(8), 5, 0.06),
    "steep": (ShrinkingStep(8, q=4.0, k=4.0, b=2.0), 1, 0.03),
}


@pytest.fixture
def parts(golden):
    reference, adm = golden("consistency_progressive"), golden("edm_adm_small")
    student = denoiser_of(adm.description["constructor"])
    student.load_state_dict(reference.part("student."))
    student.schedule = SCHEDULE
    condition = Condition(labels=reference.tensors["class_labels"].argmax(1))
    return golden("ect").tensors, reference.tensors, student.requires_grad_(True), condition


class Replay(Step):
    """A step whose data and draws are the golden's."""

    def __init__(self, given, student, condition, t, progress):
        low, high = (torch.tensor(end).log() for end in ratio_range(SCHEDULE, 80.0))
        below, at, above = (torch.special.ndtr((v - MEAN) / STD).double() for v in (low, t.double().log(), high))
        self._batches, self._uniform = {Images: Images(given["x_start"], condition)}, (at - below) / (above - below)
        self.student, self.device, self.progress = student, torch.device("cpu"), progress
        self._noise, self._logged = given["noise"], {}

    def normal(self, purpose):
        return self._noise

    def uniform(self, purpose):
        return self._uniform


@pytest.mark.parametrize("name", CASES)
def test_the_whole_objective(parts, name):
    t, given, network, condition = parts
    step, stage, c = CASES[name]
    curriculum = Continuous(step, MEAN, STD)
    objective = ConsistencyTuning(Neighbours(network, None), curriculum, weighting="inverse-step", c=c, source="images")
    student = StudentGenerator(network, ConsistencySampler(levels=(80.0,)), (3, 16, 16))
    replay = Replay(given, student, condition, t[f"{name}.t"], stage / step.stages)
    s, s_next = curriculum(replay.uniform("level"), replay.progress, SCHEDULE, 80.0)
    torch.testing.assert_close(s.float(), t[f"{name}.t"], rtol=1e-4, atol=0)
    torch.testing.assert_close(s_next.float(), t[f"{name}.r"], rtol=1e-4, atol=2e-6)
    loss = objective(replay)
    torch.testing.assert_close(loss, t[f"{name}.loss"].mean(), rtol=1e-3, atol=0)
    loss.backward()
    compared = [g for g in t if g.startswith(f"{name}.grad.")]
    found = dict(network.named_parameters())
    for key in compared:
        gradient = found[key.removeprefix(f"{name}.grad.")].grad
        assert (gradient - t[key]).abs().max() <= 1e-3 * t[key].abs().max(), key
    assert len(compared) == 2
