"""Samples: the same noise and labels however they are cut, evaluations counted, nothing but pixels accepted."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillkit import DistillkitError, StudentGenerator
from distillkit.evaluation.protocol import SampleSpec
from distillkit.evaluation.sampling import Tally, require_pixels, sampled, seeded_labels, seeded_noise
from distillkit.jobs.scores import student_pixels

CPU = torch.device("cpu")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 40),
    world=st.integers(1, 4),
    labels=st.sampled_from(["index mod classes", "drawn after the noise"]),
)
def test_noise_and_labels_are_bit_identical_for_any_batch_and_number_of_processes(tiny_teacher, batch, world, labels):
    spec, samples = tiny_teacher.spec, SampleSpec(count=37, first_seed=5, labels=labels)

    def draw(batch, world):
        seen = []

        def generate(noise, condition, seeds):
            seen.append((noise, condition.labels))
            return torch.zeros(len(noise), 1, 8, 8, dtype=torch.uint8)

        for rank in range(world):
            mine = range(37 * rank // world, 37 * (rank + 1) // world)
            batches = [range(k, min(k + batch, mine.stop)) for k in range(mine.start, mine.stop, batch)]
            for _ in sampled(generate, tiny_teacher.denoiser, spec, samples, CPU, batches, Tally()):
                pass
        return torch.cat([n for n, _ in seen]), torch.cat([c for _, c in seen])

    noise, drawn = draw(batch, world)
    whole_noise, whole_labels = draw(37, 1)
    assert torch.equal(noise, whole_noise) and torch.equal(drawn, whole_labels)
    assert torch.equal(noise, seeded_noise(list(range(5, 42)), spec.shape))


def test_labels_drawn_after_the_noise_come_from_the_same_generator():
    generator = torch.Generator().manual_seed(7)
    torch.randn(3, 64, 64, generator=generator)
    expected = torch.randint(1000, (1,), generator=generator)
    assert seeded_labels([7], (3, 64, 64), 1000).labels.tolist() == expected.tolist()
    assert not seeded_labels([7], (3, 64, 64), 0)


def test_a_tally_that_is_continued_counts_on(tiny_teacher):
    student, tally = StudentGenerator.from_teacher(tiny_teacher).eval(), Tally()
    for batches in ([range(0, 4), range(4, 8)], [range(8, 11)]):
        for _ in sampled(
            student_pixels(student, tiny_teacher),
            student.denoiser,
            tiny_teacher.spec,
            SampleSpec(count=11),
            CPU,
            batches,
            tally,
        ):
            pass
    assert (tally.samples, tally.evaluations, tally.nfe) == (11, 11, 1.0)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(2, 3, 8, 8) * 2 - 1,
        torch.zeros(2, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
    ],
)
def test_anything_but_pixels_is_refused(images):
    with pytest.raises(DistillkitError, match="uint8 are due"):
        require_pixels(images)
