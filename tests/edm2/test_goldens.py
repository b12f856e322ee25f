"""EDM2's network, its loss and its forced weight normalisation compute what the reference implementation computes."""

import pytest
import torch

from distillkit import ClassLabels, Condition, Teacher, TeacherSpec
from distillkit.engine.preparation import checkpoint_gradients
from distillkit.models.precision import in_dtype
from distillkit.parts import uncertainty_weighted_error
from tests.edm2.small import small

UNTIL = 1e-5


@pytest.fixture
def reference(golden):
    return golden("edm2_small")


def inputs(reference):
    x0, noise, sigma = (reference.tensors[name] for name in ("x0", "noise", "sigma"))
    return x0 + sigma[:, None, None, None] * noise, sigma, Condition(labels=reference.tensors["labels"])


def close(found, expected, until=UNTIL):
    assert (found - expected).abs().max() <= until * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoised_and_uncertainty(reference, dtype):
    denoiser = small(reference).to(dtype)
    x, sigma, condition = inputs(reference)
    x, sigma = x.to(dtype), sigma.to(dtype)
    close(denoiser(x, sigma, condition), reference.tensors["denoised"])
    close(denoiser(x, sigma, Condition()), reference.tensors["denoised_no_label"])
    close(
        denoiser(x, sigma, Condition(labels=torch.full_like(condition["labels"], -1))),
        reference.tensors["denoised_no_label"],
    )
    close(small(reference, label_dim=0).to(dtype)(x, sigma, Condition()), reference.tensors["denoised_unconditional"])
    close(denoiser.log_variance(sigma), reference.tensors["logvar"])
    assert not reference.tensors["denoised"].allclose(reference.tensors["denoised_no_label"], atol=1e-2)


@torch.no_grad()
def test_every_argument_of_the_network(reference):
    x, sigma, condition = inputs(reference)
    for name, changes in reference.description["variants"].items():
        expected = reference.tensors[f"variant.{name}"]
        close(small(reference, **changes)(x, sigma, condition), expected)
        # Nothing here is as large as the released networks clip at.
        assert (name == "unclipped") == expected.allclose(reference.tensors["denoised"], rtol=1e-4, atol=1e-4), name


def test_loss_gradients_and_forced_normalisation(reference):
    denoiser = small(reference)
    denoiser.after_update()
    for name in ("model.dec.8x8_block0.conv_res0", "model.emb_noise", "logvar.linear", "model.enc.8x8_conv"):
        theirs = name.replace("logvar.linear", "logvar_linear").replace("model.", "unet.")
        close(denoiser.get_submodule(name).weight, reference.tensors[f"forced.{theirs}.weight"])
    x, sigma, condition = inputs(reference)
    loss = uncertainty_weighted_error(denoiser, denoiser(x, sigma, condition), reference.tensors["x0"], sigma)
    close(loss.detach(), reference.tensors["loss"])
    loss.backward()
    norms = {
        name.replace("model.", "unet.").replace("logvar.linear", "logvar_linear"): p.grad.norm()
        for name, p in denoiser.named_parameters()
    }
    expected = reference.part("grad_norm.")
    assert norms.keys() == expected.keys() and min(expected.values()) >= 0
    for name, norm in norms.items():
        assert abs(norm - expected[name].item()) <= 1e-5 * expected[name].item() + 1e-7, name


@torch.no_grad()
def test_sampling(reference):
    spec = TeacherSpec(name="golden", shape=(3, 8, 8))
    teacher, unconditional = (
        Teacher(small(reference, **changes), spec, conditioner)
        for changes, conditioner in (({}, ClassLabels(classes=5, null_label=False)), ({"label_dim": 0}, None))
    )
    noise, (_, _, condition) = reference.tensors["noise"], inputs(reference)
    close(teacher.sample(noise, condition, steps=5), reference.tensors["sampled"])
    guided = teacher.guided_by(unconditional).sample(noise, condition, steps=5, guidance=1.7)
    close(guided, reference.tensors["sampled_guided"])


def test_gradient_checkpointing_changes_nothing(reference):
    gradients = []
    for recompute in (False, True):
        denoiser = small(reference)
        if recompute:
            assert checkpoint_gradients(denoiser)
        x, sigma, condition = inputs(reference)
        x.requires_grad_()
        denoiser(x, sigma, condition).square().mean().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@torch.no_grad()
def test_weights_in_half_precision_change_numbers_by_their_rounding(reference):
    teacher = Teacher(small(reference), TeacherSpec(name="golden", shape=(3, 8, 8)))
    exact = teacher.denoiser(*inputs(reference))
    rounded = in_dtype(teacher, torch.bfloat16).denoiser(*inputs(reference))
    assert {p.dtype for p in teacher.denoiser.parameters()} == {torch.bfloat16} and rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@torch.no_grad()
def test_autocast_keeps_preconditioning_and_uncertainty_in_float32(reference):
    denoiser = small(reference)
    x, sigma, condition = inputs(reference)
    with torch.autocast("cpu", torch.bfloat16):
        out, uncertainty = denoiser(x, sigma, condition), denoiser.log_variance(sigma)
    assert out.dtype == torch.float32
    close(uncertainty, reference.tensors["logvar"])
    assert 0 < (out - reference.tensors["denoised"]).abs().max() < 0.1


def test_forward_mode_differentiation_agrees_with_finite_differences(reference):
    denoiser = small(reference).double()
    x, sigma, condition = inputs(reference)
    x, tangent = x.double(), torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    _, found = torch.func.jvp(lambda x: denoiser(x, sigma.double(), condition), (x,), (tangent,))
    step = 1e-5
    with torch.no_grad():
        ends = [denoiser(x + k * step * tangent, sigma.double(), condition) for k in (1, -1)]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_networks_trace_without_graph_breaks_and_agree_in_channels_last(reference):
    denoiser = small(reference).to(memory_format=torch.channels_last)
    x, sigma, _ = inputs(reference)
    labels = torch.nn.functional.one_hot(reference.tensors["labels"], 5).float()
    # "eager" traces as the compiler does, and stops at anything it would have to leave the graph for.
    traced = torch.compile(denoiser.model, fullgraph=True, backend="eager")
    raw = traced(x.to(memory_format=torch.channels_last), sigma.log() / 4, labels)
    torch.testing.assert_close(raw, denoiser.model(x, sigma.log() / 4, labels), rtol=1e-5, atol=1e-5)
    close(denoiser(*inputs(reference)), reference.tensors["denoised"])
