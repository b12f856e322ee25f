"""The embedded mixture, where the truth is known: its masses, its divergence, its denoiser, its measure."""

import pytest
import torch

from distillkit import Condition, StudentGenerator, UsageError, load_teacher
from distillkit.embedded.mixture.protocol import CELLS, HALF, POINTS, divergence, true_masses
from distillkit.embedded.mixture.teacher import MODES, SPREAD, MixtureDenoiser, means
from distillkit.evaluation.generator import student_generator, teacher_generator
from distillkit.evaluation.pipeline import measure
from distillkit.evaluation.presets import default_protocol, load_measure
from distillkit.evaluation.record import Subject
from distillkit.evaluation.teacher_record import record_key

CPU = torch.device("cpu")


def drawn(count, spread=SPREAD, modes=MODES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mode = torch.randint(modes, (count,), generator=generator)
    return means()[mode] + spread * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def test_the_masses_of_all_cells_are_one_and_none_is_empty():
    masses = true_masses()
    assert masses.sum().item() == pytest.approx(1, abs=1e-12) and (masses > 0).all()
    ends = [-HALF, HALF, -HALF, HALF]
    counted = torch.histogramdd(drawn(400_000), [CELLS, CELLS], range=ends).hist.flatten() / 400_000
    assert (counted - masses[:-1]).abs().max() < 5 * (masses.max() / 400_000).sqrt()


def test_the_divergence_is_zero_for_the_truth_and_known_for_others():
    true = divergence(drawn(400_000))
    assert 0 <= true.kl < 0.003 and true.covered == MODES and true.between < 5e-4
    half = divergence(drawn(400_000, modes=4))
    assert half.kl == pytest.approx(torch.tensor(2.0).log().item(), abs=0.01), "half of the modes: log 2"
    assert half.covered == 4
    # Of a Gaussian of spread a against one of spread b in the plane: a^2 / b^2 - 1 - log(a^2 / b^2). What is smaller
    # than a cell is not seen, so cells can hide a part of it and never add to it.
    exact = 2.25 - 1 - torch.tensor(2.25).log().item()
    assert 0.9 * exact < divergence(drawn(400_000, spread=1.5 * SPREAD)).kl < exact


def test_the_denoiser_is_the_posterior_mean():
    """Against a sum over many samples of the mixture, weighted by Bayes' rule."""
    x0, denoiser = drawn(200_000).float(), MixtureDenoiser()
    for sigma, x in ((0.3, (0.5, 0.2)), (1.0, (-0.4, 0.9)), (0.1, (0.69, 0.05))):
        point = torch.tensor([x])
        weights = torch.softmax(-(point - x0).square().sum(1) / (2 * sigma**2), 0)
        expected = (weights[:, None] * x0).sum(0)
        found = denoiser(point, torch.tensor([sigma]), Condition()).flatten()
        torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("mixture")


def test_the_measure_gives_the_figures_of_version_0_1(teacher):
    protocol = load_measure(default_protocol(teacher))
    assert protocol.protocol.id == "p1-1df26b18b86d8f4d"
    record = measure(teacher_generator(teacher), protocol, device=CPU)
    assert record.figure.value == pytest.approx(0.052850965, rel=1e-4)
    assert record.figure.standard_error is None, "it is computed: there is no sampling error"
    assert record.nfe == 35 and record.protocol.samples.rng == "sobol"
    student = StudentGenerator.from_teacher(teacher).eval()
    untrained = student_generator(
        student, teacher.conditioner, teacher.codec, Subject(kind="student", name="untrained")
    )
    record = measure(untrained, protocol, device=CPU)
    assert record.figure.value == pytest.approx(90.556374, rel=1e-4) and record.nfe == 1


def test_the_shipped_record_is_what_a_fresh_measurement_gives(teacher):
    protocol = load_measure("mixture")
    shipped = teacher.records[record_key(teacher_generator(teacher), protocol)]
    fresh = measure(teacher_generator(teacher), protocol, device=CPU)
    assert shipped["figures"].keys() == fresh.figures.keys() and shipped["nfe"] == fresh.nfe
    for label, figure in fresh.figures.items():
        assert shipped["figures"][label]["value"] == pytest.approx(figure.value, rel=1e-3, abs=1e-4)


def test_more_steps_bring_the_teacher_closer_to_the_truth(teacher):
    protocol = load_measure("mixture")
    values = [
        measure(teacher_generator(teacher, steps), protocol, device=CPU).figure.value for steps in (5, 10, 18, 50)
    ]
    assert values == sorted(values, reverse=True) and values[-1] < 0.02


def test_the_points_do_not_depend_on_batch_or_number_asked_for(teacher):
    protocol = load_measure("mixture", count=100, first_seed=7)
    assert protocol.count == POINTS and protocol.protocol == load_measure("mixture").protocol
    whole, parts = (
        measure(teacher_generator(teacher, 2), protocol, device=CPU, batch=batch) for batch in (None, 10_000)
    )
    assert whole.samples_sha256 == parts.samples_sha256 and whole.figures == parts.figures


def test_images_are_not_measured_against_the_mixture():
    with pytest.raises(UsageError, match="points"):
        measure(teacher_generator(load_teacher("digits")), load_measure("mixture"), device=CPU)
