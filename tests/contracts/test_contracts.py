"""Conditions, random draws, guidance, steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit import Condition, Denoiser, SampleRNG, Step, StudentGenerator, Teacher, TeacherSpec


class Recorder(Denoiser):
    """Returns x times (1 + label); counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, sigma, condition):
        self.calls.append(len(x))
        factor = 1 + condition["labels"].float() if condition else torch.ones(len(x))
        return x * factor.view(-1, 1, 1, 1) * self.scale


def teacher(classes=3):
    return Teacher(Recorder(), TeacherSpec(name="t", shape=(1, 2, 2), num_classes=classes, network={}))


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
    conditional, unconditional = t(x, sigma, condition), t.denoiser(x, sigma, t.null_condition(condition))
    for w in (0.0, 0.5, 1.0, 3.0):
        expected = unconditional + w * (conditional - unconditional)
        torch.testing.assert_close(t(x, sigma, condition, w), expected)
    t.denoiser.calls.clear()
    t(x, sigma, condition)
    t(x, sigma, condition, 2.0)
    assert t.denoiser.calls == [2, 4], "one evaluation without guidance, one of twice the batch with it"


def test_text_conditions_and_latents_fit_without_change():
    """A latent text-to-image teacher: other fields, a prompt list, a decoder; the contracts pass it through."""

    class TextTeacher(Teacher):
        prompts = torch.randn(5, 7, 3)

        def draw_condition(self, uniform):
            index = (uniform * 5).long()
            return Condition(text=self.prompts[index], mask=torch.ones(len(index), 7))

        def null_condition(self, condition):
            return Condition(text=torch.zeros_like(condition["text"]), mask=condition["mask"])

        def decode(self, x):
            return super().decode(torch.nn.functional.interpolate(x, scale_factor=8))

    class TextDenoiser(Denoiser):
        def forward(self, x, sigma, condition):
            return x + condition["text"].mean((1, 2)).view(-1, 1, 1, 1)

    t = TextTeacher(TextDenoiser(), TeacherSpec(name="text", shape=(4, 8, 8), network={}))
    step = Step(index=0, indices=range(6), student=StudentGenerator.from_teacher(t), rng=SampleRNG(0),
                draw_condition=t.draw_condition, device=torch.device("cpu"))  # fmt: skip
    assert step.samples.shape == (6, 4, 8, 8)
    assert t(step.samples, torch.ones(6), step.condition, 7.5).shape == (6, 4, 8, 8)
    assert t.decode(step.samples).shape == (6, 4, 64, 64)


def test_condition_is_a_mapping_with_a_batch():
    condition = Condition(labels=torch.arange(4), text=torch.zeros(4, 2))
    assert set(condition) == {"labels", "text"} and condition.select(slice(1, 3)).labels.tolist() == [1, 2]
    assert Condition.cat([condition, condition])["text"].shape == (8, 2)
    assert not Condition() and Condition().labels is None and not Condition.cat([Condition(), Condition()])
    assert "labels=(4,)" in repr(condition)
    with pytest.raises(ValueError, match="differ in batch size"):
        Condition(labels=torch.arange(4), text=torch.zeros(3, 2))


def test_decode_rounds_half_up_as_edm_does(golden):
    t = golden("frechet").tensors
    decoded = teacher().decode(t["quant.x_f32"].view(1, 1, 1, -1)).flatten()
    assert torch.equal(decoded, t["quant.edm_u8"])


def test_public_names_are_there_and_lazy():
    import distillkit

    for name in distillkit.__all__:
        assert getattr(distillkit, name) is not None
    assert "Objective" in dir(distillkit)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        distillkit.Nonsense  # noqa: B018
