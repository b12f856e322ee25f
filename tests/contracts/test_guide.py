"""Autoguidance: what it computes against EDM2's own sampler, across schedules, and what cannot guide."""

import pytest
import torch
from torch import nn

from distillkit import (
    ClassLabels,
    Condition,
    Denoiser,
    Pixels,
    Points,
    Teacher,
    TeacherSpec,
    UsageError,
    build_denoiser,
)
from distillkit.contracts.guide import at_same_noise
from distillkit.diffusion import EDMSchedule, FlowSchedule, VPSchedule
from distillkit.engine.cost import flop_counter
from distillkit.models.counting import count_evaluations
from distillkit.models.guide_cost import _described, _operations, guide_cost
from distillkit.testing.teachers import TEACHERS, conditional, flow, points, smallest, text_to_latent, unconditional
from tests.parts.toys import toy_teacher

SCHEDULES = [EDMSchedule(), VPSchedule(), VPSchedule(zero_terminal_snr=True), FlowSchedule(shift=3.0)]
SPREAD = 0.7


class Normal(Denoiser):
    """Exact for data N(mean, SPREAD^2), under any schedule."""

    def __init__(self, schedule, mean=0.0):
        super().__init__()
        self.schedule, self.mean, self.asked = schedule, mean, []
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, condition):
        self.asked.append((float(self.schedule.ratio(t.double())[0]), dict(condition)))
        alpha, sigma = (part(t.double()).reshape(-1, 1) for part in (self.schedule.alpha, self.schedule.sigma))
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)


def normal(schedule, mean=0.0, conditioner=None, name="normal"):
    return Teacher(Normal(schedule, mean), TeacherSpec(name=name, shape=(2,)), conditioner, Points())


def test_sampling_equals_edm2s_sampler(golden):
    """generate_images.edm_sampler, a conditional and an unconditional network guiding a conditional one."""
    stored = golden("edm2_autoguidance")

    def teacher(name):
        classes = stored.description["classes"][name]
        arguments = {"channels": 1, "rank": 2, "classes": classes}
        denoiser = build_denoiser({"kind": "distillkit:SmallNetwork", "arguments": arguments})
        denoiser.load_state_dict(stored.part(f"{name}."))
        conditioner = ClassLabels(classes=classes, null_label=False) if classes else None
        return Teacher(denoiser, TeacherSpec(name=name, shape=(1, 8, 8)), conditioner)

    noise, condition = stored.tensors["noise"], Condition(labels=stored.tensors["labels"])
    for name in ("weak", "plain"):
        guided = teacher("main").guided_by(teacher(name))
        for weight in stored.description["guidance"]:
            made = guided.sample(noise, condition, steps=stored.description["num_steps"], guidance=weight)
            torch.testing.assert_close(made, stored.tensors[f"samples/{name}/{weight}"].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.7, torch.tensor([1.0, 2.0, 0.5])], ids=["none", "one", "of each"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_formula(weight, rescale):
    teacher, guide = toy_teacher(), toy_teacher()
    with torch.no_grad():
        guide.denoiser.model.last.weight.mul_(0.5)
    x, t = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 2.0, 30.0])
    condition = Condition(labels=torch.tensor([0, 1, 2]))
    with torch.no_grad():
        strong, weak = teacher.denoiser(x, t, condition), guide.denoiser(x, t, condition)
        found = teacher.guided_by(guide)(x, t, condition, weight, rescale=rescale)
    w = weight.reshape(-1, 1, 1, 1) if isinstance(weight, torch.Tensor) else weight
    expected = weak + w * (strong - weak)
    if rescale:
        factor = (strong.flatten(1).std(1) / expected.flatten(1).std(1)).reshape(-1, 1, 1, 1)
        expected = expected * (1 + rescale * (factor - 1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_nothing_of_the_guide_is_evaluated_without_guidance():
    teacher = conditional().guided_by(smaller := _classes(10))
    condition = teacher.conditioner.encode(torch.arange(2))
    noise = torch.zeros(2, 1, 8, 8)
    with count_evaluations(teacher.denoiser) as own, count_evaluations(smaller.denoiser) as other:
        plain = teacher.sample(noise, condition)
        assert (own(), other()) == (10, 0)
        teacher.sample(noise, condition, guidance=3.0)
        assert (own(), other()) == (20, 10)
    assert torch.equal(plain, conditional().sample(noise, condition))


def _classes(count):
    """A network for the samples of `conditional` and `smallest`, with so many classes."""
    network = {"kind": "distillkit:SmallNetwork", "arguments": {"channels": 1, "rank": 2, "classes": count}}
    spec = TeacherSpec(name=f"{count} classes", shape=(1, 8, 8))
    return Teacher(build_denoiser(network), spec, ClassLabels(classes=count) if count else None)


def test_an_unconditional_guide_is_given_no_condition_and_a_conditional_one_the_same():
    labels = {"labels": torch.tensor([0, 2])}
    for conditioner, expected in ((None, {}), (ClassLabels(classes=3), labels)):
        guide = normal(EDMSchedule(), conditioner=conditioner)
        teacher = normal(EDMSchedule(), 1.0, ClassLabels(classes=3)).guided_by(guide)
        teacher(torch.zeros(2, 2), torch.ones(2), Condition(**labels), 2.0)
        (_, seen), *more = guide.denoiser.asked
        assert not more and seen.keys() == expected.keys() and all(torch.equal(seen[k], expected[k]) for k in seen)


def test_a_guide_without_null_label_or_conditions_makes_a_teacher_guidable():
    alone = normal(EDMSchedule(), conditioner=ClassLabels(classes=3, null_label=False))
    assert not alone.guidable and alone.guided_by(normal(EDMSchedule())).guidable
    free = normal(EDMSchedule())
    assert not free.guidable and free.guided_by(normal(EDMSchedule())).guidable
    x = torch.ones(1, 2)
    expected = 3.0 * free.denoiser(x, torch.ones(1), Condition()) - 2.0 * Normal(EDMSchedule(), 1.0)(
        x, torch.ones(1), Condition()
    )
    found = free.guided_by(normal(EDMSchedule(), 1.0))(x, torch.ones(1), Condition(), 3.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("own", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize("other", SCHEDULES, ids=lambda s: s.kind)
def test_a_guide_with_another_schedule_sees_the_same_sample_with_the_same_noise(own, other):
    ratios = torch.tensor([0.05, 0.3, 1.0, 7.0, 60.0], dtype=torch.float64)
    t, x = own.at(ratios), torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = own.add_noise(x, x.flip(0), t)
    found, expected = (
        normal(own).guided_by(normal(schedule, 0.3))(x, t, Condition(), 2.5) for schedule in (other, own)
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_beyond_its_ends_a_guide_is_asked_at_these():
    narrow, wide = EDMSchedule(sigma_min=0.5, sigma_max=5.0), EDMSchedule()
    for level, end in ((80.0, 5.0), (0.002, 0.5), (2.0, 2.0)):
        x, t = torch.full((1, 2), 1.5 * level), torch.tensor([level])
        seen, at = at_same_noise(x, t, wide, narrow)
        # The same noise where it is too strong, and the same signal where it is too weak.
        assert float(at) == pytest.approx(end) and float(seen[0, 0]) == pytest.approx(1.5 * min(level, end))
    remark = normal(wide).guided_by(normal(narrow, name="narrow")).guide.remark
    assert "narrow" in remark and "0.5 to 5" in remark and "0.002 to 80" in remark
    assert not normal(narrow).guided_by(normal(wide)).guide.remark
    pure, t = FlowSchedule(), torch.ones(1)
    seen, at = at_same_noise(torch.full((1, 2), 2.0), t, pure, wide)
    assert float(at) == 80 and float(seen[0, 0]) == pytest.approx(160)


@pytest.mark.parametrize(
    ("teacher", "guide", "said"),
    [
        (conditional, points, r"3 and cannot guide .* samples are 1 x 8 x 8"),
        (conditional, smallest, r"other conditions \(3 classes\) than those .* \(10 classes\)"),
        (unconditional, smallest, r"other conditions \(3 classes\).*\(none\)"),
        (flow, lambda: normal_like(flow(), codec=Pixels(video=True)), r"codecs, Pixels and Pixels, differ"),
        (conditional, lambda: conditional().guided_by(_classes(10)), "guided itself"),
    ],
)
def test_what_cannot_guide(teacher, guide, said):
    with pytest.raises(UsageError, match=said):
        teacher().guided_by(guide())


def normal_like(teacher, codec):
    return Teacher(teacher.denoiser, teacher.spec, teacher.conditioner, codec)


def test_its_own_weights_cannot_guide_it_and_a_negative_prompt_has_no_place():
    teacher = conditional()
    with pytest.raises(UsageError, match="by its own weights"):
        teacher.guided_by(teacher)
    known = {"weights_sha256": "1" * 64}
    twins = [conditional(), conditional()]
    for twin in twins:
        twin.spec = twin.spec.model_copy(update=known)
    with pytest.raises(UsageError, match="by its own weights"):
        twins[0].guided_by(twins[1])
    condition = teacher.conditioner.encode(torch.arange(1))
    with pytest.raises(UsageError, match="no place for a negative prompt"):
        teacher.guided_by(_classes(10))(torch.zeros(1, 1, 8, 8), torch.ones(1), condition, 2.0, condition)


def test_text_is_encoded_once_for_networks_of_one_encoder():
    """And those of another encoder are refused."""
    teacher, guide = text_to_latent(), text_to_latent()
    with torch.no_grad():
        for parameter in guide.denoiser.parameters():
            parameter.mul_(0.9)
    condition = teacher.conditioner.encode(torch.tensor([0, 2]))
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([300.0, 900.0])
    with torch.no_grad():
        strong, weak = (one.denoiser(x, t, condition) for one in (teacher, guide))
        found = teacher.guided_by(guide)(x, t, condition, 2.0)
    torch.testing.assert_close(found, 2 * strong - weak)
    guide.conditioner = guide.conditioner.model_copy(update={"prompts": ("another",)})
    with pytest.raises(UsageError, match="it takes other conditions"):
        teacher.guided_by(guide)


def test_what_a_guide_costs_is_its_share_of_the_operations():
    assert guide_cost(conditional()) == 0
    small, like = guide_cost(conditional().guided_by(_classes(10))), guide_cost(conditional().guided_by(conditional()))
    assert like == 1 and 0.2 < small < 0.5
    # Of plugins' networks without a description parameters are counted.
    assert guide_cost(normal(EDMSchedule()).guided_by(normal(EDMSchedule()))) == 1
    own, other = text_to_latent(), text_to_latent()
    assert guide_cost(own.guided_by(other)) == 1


@pytest.mark.parametrize("name", sorted({*TEACHERS} - {"text-to-latent"}))
def test_operations_of_every_kind_of_network_are_counted_without_its_weights(name):
    """The same as those of a pass with weights."""
    teacher = TEACHERS[name]()
    condition = teacher.conditioner.encode(teacher.conditioner.in_turn(range(1)))
    t = teacher.schedule.grid(3)[1:2].float()
    with torch.no_grad(), flop_counter() as counter:
        teacher.denoiser(torch.zeros(1, *teacher.spec.shape), t, condition)
    labels = teacher.conditioner.count > 0
    found = _operations(_described(teacher.denoiser), tuple(teacher.spec.shape), labels=labels)
    assert found == counter.get_total_flops() > 0


def test_a_guided_teacher_is_another_object_with_the_same_data():
    teacher = conditional()
    teacher_images = teacher.images
    guided = teacher.guided_by(_classes(10))
    assert teacher.guide is None and guided.denoiser is teacher.denoiser and guided.images is teacher_images
    assert [type(one) for one in guided.denoisers] == [type(teacher.denoiser), type(guided.guide.denoiser)]
    assert not any(p.requires_grad for denoiser in guided.denoisers for p in denoiser.parameters())
    assert {p.device.type for denoiser in guided.to("meta").denoisers for p in denoiser.parameters()} == {"meta"}
