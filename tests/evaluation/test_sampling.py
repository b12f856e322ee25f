"""Samples: the same noise and conditions however they are cut, evaluations counted, nothing undecoded accepted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit import ClassLabels, DistillkitError, Unconditional
from distillkit.evaluation.protocol import SampleSpec
from distillkit.evaluation.sampling import inputs, keys_after_noise, require_content, seeded_noise, sobol_noise

SHAPE = (1, 8, 8)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 40),
    world=st.integers(1, 4),
    labels=st.sampled_from(["index mod classes", "drawn after the noise"]),
    rng=st.sampled_from(["torch-cpu-mt19937-per-sample", "sobol"]),
)
def test_noise_and_keys_are_bit_identical_for_any_batch_and_number_of_processes(batch, world, labels, rng):
    spec, conditioner = SampleSpec(count=37, first_seed=5, labels=labels, rng=rng), ClassLabels(classes=10)

    def draw(batch, world):
        made = []
        for rank in range(world):
            mine = range(37 * rank // world, 37 * (rank + 1) // world)
            for k in range(mine.start, mine.stop, batch):
                made.append(inputs(spec, range(k, min(k + batch, mine.stop)), SHAPE, conditioner))
        noise, keys, seeds = zip(*made, strict=True)
        return torch.cat(noise), torch.cat(keys), [seed for part in seeds for seed in part]

    noise, keys, seeds = draw(batch, world)
    whole_noise, whole_keys, whole_seeds = draw(37, 1)
    assert torch.equal(noise, whole_noise) and torch.equal(keys, whole_keys)
    assert seeds == whole_seeds == list(range(5, 42))


def test_noise_is_per_seed_and_equals_the_reference_draws(golden):
    expected = golden("frechet").tensors["rng.noise_f32"]
    assert torch.equal(seeded_noise([0, 1, 2], (3, 8, 8)), expected[:3])
    assert torch.equal(seeded_noise([1], (3, 8, 8)), expected[1:2])


def test_keys_drawn_after_the_noise_come_from_the_same_generator():
    generator = torch.Generator().manual_seed(7)
    torch.randn(3, 64, 64, generator=generator)
    expected = torch.randint(1000, (1,), generator=generator)
    assert keys_after_noise([7], (3, 64, 64), 1000).tolist() == expected.tolist()


def test_keys_go_round_and_prompts_in_their_order():
    spec = SampleSpec(count=8)
    _, keys, _ = inputs(spec, range(8, 13), SHAPE, ClassLabels(classes=10))
    assert keys.tolist() == [8, 9, 0, 1, 2]
    _, keys, _ = inputs(spec, range(2, 6), SHAPE, ClassLabels(classes=10), torch.tensor([7, 3, 5]))
    assert keys.tolist() == [5, 7, 3, 5]
    _, keys, _ = inputs(spec, range(3), SHAPE, Unconditional())
    assert not Unconditional().encode(keys)


def test_sobol_noise_is_evenly_spread():
    noise = sobol_noise(range(4096), (2,))
    assert noise.shape == (4096, 2) and noise.isfinite().all()
    assert noise.mean(0).abs().max() < 2e-3 and (noise.var(0) - 1).abs().max() < 0.01


@pytest.mark.parametrize(
    ("decoded", "content"),
    [
        (torch.rand(2, 3, 8, 8) * 2 - 1, "images"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), "images"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "images"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "video"),
        (torch.zeros(2, 2, dtype=torch.float64), "points"),
        (torch.zeros(2, 2, 1, 1), "points"),
    ],
)
def test_what_is_not_decoded_is_refused(decoded, content):
    with pytest.raises(DistillkitError, match="codec"):
        require_content(decoded, content)
