"""Standard errors, kernel distance, neighbours, Inception score: on the goldens, and against torch-fidelity."""

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from distillkit.evaluation.features import FeatureFile, groups_of, moments_of
from distillkit.evaluation.frechet import Jackknife, frechet_distance, without
from distillkit.evaluation.kernel import inception_jackknife, inception_score, kernel_distance
from distillkit.evaluation.moments import Moments
from distillkit.evaluation.neighbours import manifolds, memorisation

CASES = ["a", "b", "c"]


def moments(features):
    out = Moments(features.shape[1])
    out.add(features)
    return out.finish()


@pytest.mark.parametrize("case", CASES)
def test_kernel_distance_is_the_full_u_statistic(golden, case):
    reference = golden("frechet")
    expected = reference.description["results"][case]["kid"]["full U-statistic (prototype, all samples)"]
    t = reference.tensors
    assert kernel_distance(t[f"{case}.gen"], t[f"{case}.real"]).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage_equal_as_counts(golden, case, k):
    reference = golden("frechet")
    expected = reference.description["results"][case]["prc"][f"dgm-eval prdc k={k} (strict <)"]
    gen, real = reference.tensors[f"{case}.gen"], reference.tensors[f"{case}.real"]
    found = manifolds(gen, real, k)
    assert round(found["precision"].value * len(gen)) == round(expected["precision"] * len(gen))
    assert round(found["recall"].value * len(real)) == round(expected["recall"] * len(real))
    assert round(found["coverage"].value * len(real)) == round(expected["coverage"] * len(real))
    assert found["density"].value == pytest.approx(expected["density"], rel=1e-9)
    for kind in ("full", "part"):
        theirs = reference.description["results"][case]["prc"][f"torch-fidelity 0.4.0 k={k} {kind}"]
        assert found["precision"].value == pytest.approx(theirs["precision"], abs=1e-6)
        assert found["recall"].value == pytest.approx(theirs["recall"], abs=1e-6)


def test_inception_score(golden):
    reference = golden("frechet")
    expected = reference.description["results"]["isc"]
    probabilities = reference.tensors["logits"].softmax(1)
    assert inception_score(probabilities)[0] == pytest.approx(expected["ADM evaluator formula, one split"], rel=1e-9)
    order = np.random.RandomState(2020).permutation(len(probabilities))
    mean, std = inception_score(probabilities[torch.from_numpy(order)], splits=10)
    theirs = expected["torch-fidelity splits=10 shuffle rng_seed=2020"]
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(30, 90), m=st.integers(30, 90), d=st.integers(2, 12), seed=st.integers(0, 99))
def test_everything_agrees_with_torch_fidelity(n, m, d, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, d, generator=generator).double(), torch.randn(m, d, generator=generator).double() + 0.5
    a, b = moments(x), moments(y)
    theirs = fid_statistics_to_metric(
        {"mu": a.mean.numpy(), "sigma": a.covariance.numpy()},
        {"mu": b.mean.numpy(), "sigma": b.covariance.numpy()},
        False,
    )
    ours = frechet_distance(a.mean, a.covariance, b.mean, b.covariance).value
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    size = min(n, m)
    kid = kid_features_to_metric(x[:size], y[:size], kid_subsets=1, kid_subset_size=size, verbose=False)
    assert kernel_distance(x[:size], y[:size]).value == pytest.approx(
        kid["kernel_inception_distance_mean"], rel=1e-6, abs=1e-9
    )
    prc = prc_features_to_metric(x, y, prc_neighborhood=3, verbose=False)
    found = manifolds(x, y)
    assert found["precision"].value == pytest.approx(prc["precision"], abs=1e-6)
    assert found["recall"].value == pytest.approx(prc["recall"], abs=1e-6)
    isc = isc_features_to_metric(x, splits=3, shuffle=False)
    assert inception_score(x.softmax(1), 3)[0] == pytest.approx(isc["inception_score_mean"], rel=1e-6)


def test_jackknife_corrects_the_bias_and_tells_the_spread(tmp_path):
    """FD of N samples of the reference's own distribution: truth 0, bias of order d^2 / N."""
    d, count = 24, 1500
    reference = moments(torch.randn(200_000, d, generator=torch.Generator().manual_seed(1)))
    values, corrected, errors = [], [], []
    for seed in range(12):
        x = torch.randn(count, d, generator=torch.Generator().manual_seed(100 + seed))
        features = FeatureFile(tmp_path / f"{seed}.f32", d)
        features.add(x)
        whole, groups = moments_of(features, d), groups_of(count)
        left_out = [without(whole, moments_of(features, d, groups == g)) for g in range(10)]
        fds = [
            frechet_distance(m.mean, m.covariance, reference.mean, reference.covariance).value
            for m in (whole, *left_out)
        ]
        jackknife = Jackknife(fds[0], tuple(fds[1:]))
        values.append(jackknife.value)
        corrected.append(jackknife.corrected)
        errors.append(jackknife.standard_error)
    spread = np.std(values, ddof=1)
    assert np.mean(values) > 5 * spread, "there is a bias to correct"
    assert abs(np.mean(corrected)) < 0.1 * np.mean(values)
    assert 0.5 < np.mean(errors) / spread < 2


def test_moments_without_a_group_are_those_of_the_rest(tmp_path):
    x = torch.randn(2500, 6) + 100
    features = FeatureFile(tmp_path / "f", 6)
    for part in x.split(700):
        features.add(part)
    groups = groups_of(2500)
    rest = without(moments_of(features, 6), moments_of(features, 6, groups == 3))
    direct = moments(x[groups != 3])
    assert rest.count == direct.count == 2250
    torch.testing.assert_close(rest.mean, direct.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(rest.covariance, direct.covariance, rtol=1e-9, atol=1e-10)


@given(count=st.integers(10, 3000))
@settings(max_examples=30, deadline=None)
def test_groups_are_of_one_size_and_not_the_classes(count):
    groups = groups_of(count)
    sizes = groups.bincount(minlength=10)
    assert sizes.max() - sizes.min() <= 1
    if count >= 1000:
        in_class = groups[torch.arange(count) % 10 == 0].bincount(minlength=10)
        assert in_class.max() < 0.4 * in_class.sum()


def test_feature_file_survives_a_torn_row_and_gives_back_what_it_took(tmp_path):
    features = FeatureFile(tmp_path / "f", 5)
    x = torch.randn(2050, 5)
    features.add(x)
    with (tmp_path / "f").open("ab") as file:
        file.write(b"torn")
    again = FeatureFile(tmp_path / "f", 5)
    assert len(again) == 2050 and torch.equal(again.all(), x)
    again.cut(100)
    assert torch.equal(FeatureFile(tmp_path / "f", 5).all(), x[:100])
    with pytest.raises(ValueError, match="not finite"):
        again.add(torch.full((1, 5), torch.nan))


def test_memorisation_tells_copies_from_new_samples():
    generator = torch.Generator().manual_seed(0)
    real, new = torch.randn(600, 8, generator=generator), torch.randn(600, 8, generator=generator)
    assert 0.85 < memorisation(new, real).value < 1.15
    assert memorisation(real[:300] + 1e-3, real).value < 0.05


def test_too_few_samples_are_named():
    with pytest.raises(ValueError, match="more than 3 samples"):
        manifolds(torch.randn(3, 2), torch.randn(9, 2))
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(torch.randn(1, 2), torch.randn(9, 2))


def test_values_without_a_group_are_those_of_the_other_samples():
    """The jackknife of the figures beside the distance: in one pass the same as computed anew for each group."""
    generator = torch.Generator().manual_seed(3)
    x, real = torch.randn(70, 5, generator=generator), torch.randn(90, 5, generator=generator) * 1.2
    groups = groups_of(len(x))
    found = {"kid": kernel_distance(x, real, groups), **manifolds(x, real, groups=groups)}
    found |= {"memorisation": memorisation(x, real, groups), "is": inception_jackknife(x.softmax(1), groups)}
    assert all(len(jackknife.leave_one_out) == 10 and jackknife.standard_error > 0 for jackknife in found.values())
    for group in range(10):
        rest = x[groups != group]
        anew = {"kid": kernel_distance(rest, real), **manifolds(rest, real)}
        anew |= {"memorisation": memorisation(rest, real), "is": inception_jackknife(rest.softmax(1))}
        for name, value in anew.items():
            assert found[name].leave_one_out[group] == pytest.approx(value.value, rel=1e-9), name


def test_standard_errors_of_the_kernel_distance_and_of_shares_are_the_spread_between_sets_of_samples():
    real = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in range(10):
        x = torch.randn(200, 6, generator=torch.Generator().manual_seed(50 + seed)) + 0.2
        groups = groups_of(len(x))
        found.append({"kid": kernel_distance(x, real, groups), **manifolds(x, real, groups=groups)})
    for name in ("kid", "precision", "density", "coverage", "recall"):
        spread = statistics.stdev(one[name].value for one in found)
        told = statistics.fmean(one[name].standard_error for one in found)
        # Recall depends on the number of samples by its radii, so its jackknife is on the large side.
        assert 0.5 < told / spread < (4 if name == "recall" else 2), name
