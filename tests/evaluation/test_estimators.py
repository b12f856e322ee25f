"""Moments and Fréchet distance: exact on the goldens, independent of batch size and of processes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.evaluation.frechet import frechet_distance
from distillkit.evaluation.moments import Moments


def moments_of(features, batch=100):
    moments = Moments(features.shape[1])
    for part in features.split(batch):
        moments.add(part)
    return moments.finish()


@pytest.mark.parametrize(("case", "tolerance"), [("a", 1e-9), ("b", 1e-9), ("c", 1e-6)])
def test_frechet_distance_to_forty_digits(golden, case, tolerance):
    reference = golden("frechet")
    t, expected = reference.tensors, reference.description["results"][case]["fid"]
    gen, real = moments_of(t[f"{case}.gen"]), moments_of(t[f"{case}.real"])
    torch.testing.assert_close(gen.mean, t[f"{case}.gen.mu"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gen.covariance, t[f"{case}.gen.sigma"], rtol=1e-10, atol=1e-12)
    distance = frechet_distance(gen.mean, gen.covariance, real.mean, real.covariance)
    assert distance.value == pytest.approx(expected["mpmath_40_digits"], rel=tolerance)
    assert distance.mean_term == pytest.approx(expected["mean_term_mpmath"], rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 3000), batch=st.integers(1, 1500), seed=st.integers(0, 99))
def test_moments_are_bit_identical_for_any_batch_size(count, batch, seed):
    features = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)) + 100
    one, other = moments_of(features, count), moments_of(features, batch)
    assert one.count == other.count == count
    assert torch.equal(one.mean, other.mean) and torch.equal(one.scatter, other.scatter)
    torch.testing.assert_close(one.covariance, torch.cov(features.double().T), rtol=1e-9, atol=1e-9)


def test_merging_streams_equals_one_stream():
    features = torch.randn(5000, 8, dtype=torch.float64)
    merged = Moments(8)
    for part in features.tensor_split(7):
        merged.merge(moments_of(part))
    whole = moments_of(features)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-14)
    assert merged.count == 5000


def test_distance_to_itself_is_zero_also_when_singular():
    features = torch.randn(20, 40, dtype=torch.float64)
    m = moments_of(features)
    assert abs(frechet_distance(m.mean, m.covariance, m.mean, m.covariance).value) < 1e-6


def test_nan_features_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        Moments(2).add(torch.tensor([[1.0, float("nan")]]))
