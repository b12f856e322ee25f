"""Conditions, random draws, guidance, steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit import (
    ClassLabels,
    Condition,
    Denoiser,
    SampleRNG,
    Step,
    StudentGenerator,
    Teacher,
    TeacherSpec,
    Unconditional,
    UsageError,
)
from distillkit.diffusion import EDMSchedule, per_sample


class Recorder(Denoiser):
    """Returns x times (1 + label); counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls, self.schedule = [], EDMSchedule()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, t, condition):
        self.calls.append(len(x))
        factor = 1 + condition["labels"].float() if condition else torch.ones(len(x))
        return x * per_sample(factor, x) * self.scale


def teacher(null_label=True):
    return Teacher(Recorder(), TeacherSpec(name="t", shape=(1, 2, 2)), ClassLabels(classes=3, null_label=null_label))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 10**7), cut=st.integers(1, 15))
def test_draws_do_not_depend_on_how_the_batch_is_cut(seed, step, cut):
    rng = SampleRNG(seed)
    whole = rng.normal("p", step, range(16), (1, 4, 4))
    parts = torch.cat([rng.normal("p", step, range(cut), (1, 4, 4)), rng.normal("p", step, range(cut, 16), (1, 4, 4))])
    assert torch.equal(whole, parts)
    uniform = rng.uniform("p", step, range(16))
    assert torch.equal(uniform[cut:], rng.uniform("p", step, range(cut, 16)))
    assert (uniform >= 0).all() and (uniform < 1).all()


def test_draws_differ_by_seed_purpose_step_and_index_and_are_well_distributed():
    rng = SampleRNG(0)
    draws = [rng.normal("a", 0, [0], (64,)), rng.normal("b", 0, [0], (64,)), rng.normal("a", 1, [0], (64,)),
             rng.normal("a", 0, [1], (64,)), SampleRNG(1).normal("a", 0, [0], (64,))]  # fmt: skip
    correlation = torch.corrcoef(torch.cat(draws)) - torch.eye(5)
    assert correlation.abs().max() < 0.6
    normal = rng.normal("n", 0, range(4000), (16,))
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02
    uniform = rng.uniform("u", 0, range(20_000))
    histogram = torch.histc(uniform.float(), 10, 0, 1)
    assert (histogram - 2000).abs().max() < 200
    assert set(rng.integers("i", 0, range(500), 7).tolist()) == set(range(7))


def test_guidance_is_uncond_plus_w_times_difference():
    t, x = teacher(), torch.ones(2, 1, 2, 2)
    condition, sigma = Condition(labels=torch.tensor([1, 2])), torch.ones(2)
    conditional, unconditional = t(x, sigma, condition), t.denoiser(x, sigma, t.conditioner.null(condition))
    for w in (0.0, 0.5, 1.0, 3.0):
        expected = unconditional + w * (conditional - unconditional)
        torch.testing.assert_close(t(x, sigma, condition, w), expected)
    t.denoiser.calls.clear()
    t(x, sigma, condition)
    t(x, sigma, condition, 2.0)
    assert t.denoiser.calls == [2, 4], "one evaluation without guidance, one of twice the batch with it"
    with pytest.raises(UsageError, match="guidance 1"):
        teacher(null_label=False)(x, sigma, condition, 2.0)


def test_a_rescaled_guided_prediction_has_the_size_of_the_conditional_one():
    """Lin et al. 2023, Eq. 15 and 16."""
    t, x = teacher(), torch.randn(3, 1, 4, 4)
    condition, sigma = Condition(labels=torch.tensor([1, 2, 0])), torch.ones(3)
    conditional, guided = t(x, sigma, condition), t(x, sigma, condition, 5.0)
    wanted, found = (v.flatten(1).std(1)[:, None, None, None] for v in (conditional, guided))
    for share in (0.0, 0.7, 1.0):
        expected = share * guided * wanted / found + (1 - share) * guided
        torch.testing.assert_close(t(x, sigma, condition, 5.0, rescale=share), expected)
    assert torch.equal(t(x, sigma, condition, rescale=0.7), conditional), "nothing to correct without guidance"


def test_classes_are_keys_by_number_or_name():
    labels = ClassLabels(classes=3, class_names=("cat", "dog", "owl"))
    assert labels.parse(["dog", "2"]).tolist() == [1, 2] and labels.names(torch.tensor([0, 2])) == ["cat", "owl"]
    assert labels.in_turn(range(2, 6)).tolist() == [2, 0, 1, 2]
    assert set(labels.draw(SampleRNG(0).uniform("c", 0, range(200))).tolist()) == {0, 1, 2}
    for wrong in ("3", "-1", "cow", "1.0"):
        with pytest.raises(UsageError, match=repr(wrong)):
            labels.parse([wrong])
    assert not Unconditional().encode(torch.zeros(4, dtype=torch.int64)) and Unconditional().count == 0


def test_a_step_reads_what_is_declared_and_releases_the_students_graph():
    t = teacher()
    step = Step(
        index=0, indices=range(6), student=StudentGenerator.from_teacher(t), rng=SampleRNG(0),
        conditioner=t.conditioner, device=torch.device("cpu"),
    )  # fmt: skip
    assert step.samples.shape == (6, 1, 2, 2) and step.samples.requires_grad
    values = step.samples.detach().clone()
    step.release()
    assert not step.samples.requires_grad and torch.equal(step.samples, values)
    with pytest.raises(RuntimeError, match="Images"):
        _ = step.images


def test_condition_is_a_mapping_with_a_batch():
    condition = Condition(labels=torch.arange(4), text=torch.zeros(4, 2))
    assert set(condition) == {"labels", "text"} and condition.select(slice(1, 3))["labels"].tolist() == [1, 2]
    assert Condition.cat([condition, condition])["text"].shape == (8, 2)
    assert not Condition() and Condition().get("labels") is None and not Condition.cat([Condition(), Condition()])
    assert "labels=(4,)" in repr(condition)
    null = condition.extended(labels=torch.full((4,), -1))
    mixed = Condition.where(torch.tensor([True, False, True, False]), null, condition)
    assert mixed["labels"].tolist() == [-1, 1, -1, 3]
    with pytest.raises(ValueError, match="differ in batch size"):
        Condition(labels=torch.arange(4), text=torch.zeros(3, 2))


def test_decode_rounds_half_up_as_edm_does(golden):
    t = golden("frechet").tensors
    decoded = teacher().codec.decode(t["quant.x_f32"].view(1, 1, 1, -1)).flatten()
    assert torch.equal(decoded, t["quant.edm_u8"])


def test_public_names_are_there_and_lazy():
    import distillkit

    for name in distillkit.__all__:
        assert getattr(distillkit, name) is not None
    assert "Objective" in dir(distillkit)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        distillkit.Nonsense  # noqa: B018
