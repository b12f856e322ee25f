"""The networks compute what the reference implementation computes, from its state dicts, loaded strictly."""

import pytest
import torch

from distillkit import Condition, DistillkitError, Teacher, TeacherSpec, UsageError, build_denoiser
from distillkit.diffusion import EDMSchedule
from distillkit.models.edm.families import described
from distillkit.models.precision import in_dtype
from tests.conftest import denoiser_of

NAMES = ["edm_adm_small", "edm_ddpmpp_small", "edm_ncsnpp_small"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_denoiser_matches_reference(golden, name, dtype):
    reference = golden(name)
    denoiser = denoiser_of(reference.description["constructor"])
    denoiser.load_state_dict(reference.part("net."))
    denoiser.to(dtype)
    x, sigma = reference.tensors["x"].to(dtype), reference.tensors["sigma"].to(dtype)
    labels = reference.tensors["class_labels"].argmax(1)
    cases = {
        "denoised": (Condition(labels=labels), None),
        "denoised_no_label": (Condition(labels=torch.full_like(labels, -1)), None),
    }
    if "augment_labels" in reference.tensors:
        cases["denoised_augmented"] = (Condition(labels=labels), reference.tensors["augment_labels"].to(dtype))
    for key, (condition, augment) in cases.items():
        with torch.no_grad():
            error = (denoiser(x, sigma, condition, augment) - reference.tensors[key]).abs().max()
        assert error <= 1e-4 * reference.tensors[key].abs().max(), key


@pytest.mark.parametrize("name", NAMES)
def test_no_condition_is_the_null_label(golden, name):
    reference = golden(name)
    denoiser = denoiser_of(reference.description["constructor"])
    denoiser.load_state_dict(reference.part("net."))
    with torch.no_grad():
        out = denoiser(reference.tensors["x"], reference.tensors["sigma"], Condition())
    torch.testing.assert_close(out, reference.tensors["denoised_no_label"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_nothing(golden, name):
    from distillkit.engine.preparation import checkpoint_gradients

    reference = golden(name)
    gradients = []
    for recompute in (False, True):
        denoiser = denoiser_of(reference.description["constructor"])
        denoiser.load_state_dict(reference.part("net."))
        if recompute:
            checkpoint_gradients(denoiser)
        x = reference.tensors["x"].clone().requires_grad_()
        denoiser(x, reference.tensors["sigma"], Condition()).square().mean().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_weights_in_half_precision_change_numbers_by_their_rounding(golden, name):
    reference = golden(name)
    teacher = Teacher(denoiser_of(reference.description["constructor"]), TeacherSpec(name="golden", shape=(1,)))
    teacher.denoiser.load_state_dict(reference.part("net."))
    given = (reference.tensors["x"], reference.tensors["sigma"])
    condition = Condition(labels=reference.tensors["class_labels"].argmax(1))
    exact = teacher.denoiser(*given, condition)
    rounded = in_dtype(teacher, torch.bfloat16).denoiser(*given, condition)
    assert {p.dtype for p in teacher.denoiser.parameters()} == {torch.bfloat16} and rounded.dtype == torch.float32
    # bfloat16 has eight bits: 0.4 % an operation.
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_networks_compile_without_graph_breaks_and_agree_in_channels_last(golden, name):
    reference = golden(name)
    denoiser = denoiser_of(reference.description["constructor"]).to(memory_format=torch.channels_last)
    denoiser.load_state_dict(reference.part("net."))
    # "eager" traces as the compiler does, and stops at anything it would have to leave the graph for.
    traced = torch.compile(denoiser.model, fullgraph=True, backend="eager")
    x, sigma = reference.tensors["x"], reference.tensors["sigma"]
    labels = reference.tensors["class_labels"]
    with torch.no_grad():
        raw = traced(x.to(memory_format=torch.channels_last), sigma.log() / 4, labels)
        torch.testing.assert_close(raw, denoiser.model(x, sigma.log() / 4, labels), rtol=1e-5, atol=1e-5)
        denoised = denoiser(x, sigma, Condition(labels=labels.argmax(1)))
    torch.testing.assert_close(denoised, reference.tensors["denoised"], rtol=1e-4, atol=1e-4)


def test_attention_can_stay_in_float32(golden):
    from distillkit.engine.preparation import switch_on

    reference = golden("edm_ddpmpp_small")
    denoiser = denoiser_of(reference.description["constructor"])
    denoiser.load_state_dict(reference.part("net."))
    x, sigma = reference.tensors["x"], reference.tensors["sigma"]
    kinds = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v):
        kinds.append(q.dtype)
        return original(q, k, v)

    for expected in (torch.bfloat16, torch.float32):
        kinds.clear()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
            out = denoiser(x, sigma, Condition())
        assert set(kinds) == {expected}
        assert out.dtype == torch.float32, "preconditioning stays in float32"
        switch_on("float32_attention", denoiser)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"embedding_type": "learned"}, "learned"), ({"encoder_type": "odd"}, "odd"), ({"widths": 3}, "widths")],
)
def test_wrong_arguments_are_named(arguments, named):
    full = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, **arguments}
    with pytest.raises(DistillkitError, match=named) as wrong:
        build_denoiser(described("SongUNet", full, 0.5, EDMSchedule()))
    assert "SongUNet" in str(wrong.value)


@pytest.mark.parametrize("kind", ["ResNet", "distillkit:ResNet", "no-such-package:ResNet"])
def test_unknown_networks_are_named(kind):
    with pytest.raises(UsageError, match=kind):
        build_denoiser({"kind": kind})


def test_the_schedule_is_the_description_s():
    schedule = EDMSchedule(sigma_min=0.01, sigma_max=20.0, rho=5.0)
    denoiser = build_denoiser(described("PointMLP", {"width": 8}, 0.7, schedule))
    assert denoiser.schedule == schedule and denoiser.sigma_data == 0.7
    assert build_denoiser(denoiser.description).schedule == schedule
