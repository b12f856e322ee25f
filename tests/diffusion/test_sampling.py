"""Noise levels and the Heun sampler against the reference."""

import torch

from distillkit import Condition
from distillkit.diffusion import heun, karras_sigmas, l2, pseudo_huber
from distillkit.evaluation.sampling import count_evaluations
from tests.conftest import denoiser_of


def test_karras_grid(golden):
    sigmas = golden("edm_heun").tensors["sigmas_18"]
    torch.testing.assert_close(karras_sigmas(18), sigmas[:-1], rtol=1e-12, atol=0)
    assert karras_sigmas(1).tolist() == [80.0]
    torch.testing.assert_close(
        karras_sigmas(1000).flip(0).float(), golden("dmd_kl").tensors["karras_sigmas_ascending"], rtol=1e-5, atol=0
    )


def test_heun_matches_reference_and_counts_its_evaluations(golden):
    reference, network = golden("edm_heun"), golden("edm_adm_small")
    denoiser = denoiser_of(network.description["constructor"])
    denoiser.load_state_dict(network.part("net."))
    condition = Condition(labels=reference.tensors["class_labels"].argmax(1))
    for steps in (5, 18):
        with torch.no_grad(), count_evaluations(denoiser) as evaluations:
            sample = heun(lambda x, s: denoiser(x, s, condition), reference.tensors["latents"], karras_sigmas(steps))
        assert (sample - reference.tensors[f"sample_{steps}"]).abs().max() <= 1e-3
        assert evaluations() / len(sample) == reference.description["nfe"][f"sample_{steps}"] == 2 * steps - 1


def test_heun_solves_a_gaussian_exactly_enough():
    # For data N(0, s^2) the denoiser is linear and the ODE's end point is noise * s * smax / sqrt(s^2 + smax^2).
    s, noise = 0.5, torch.randn(64, 1, 4, 4)
    out = heun(lambda x, sigma: x * (s**2 / (s**2 + sigma**2)).view(-1, 1, 1, 1), noise, karras_sigmas(64))
    torch.testing.assert_close(out, noise * s, rtol=5e-3, atol=5e-3)


def test_distances():
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)
    assert l2(a, b).tolist() == [4.0, 4.0]
    c = 0.00054 * 48**0.5
    torch.testing.assert_close(pseudo_huber(a, b), torch.full((2,), (4 * 48 + c * c) ** 0.5 - c))
    assert pseudo_huber(a, a).abs().max() < 1e-7
