"""The embedded text-to-image teacher: read as a pipeline, measured by its own protocol, distilled to one step."""

import pytest
import torch

from distillkit import SampleRNG, UsageError, distil, load_student, load_teacher
from distillkit.contracts.text import PromptList
from distillkit.data.prompts import PromptsConfig
from distillkit.embedded.shapes.classifier import agreement
from distillkit.embedded.shapes.protocol import ShapesMeasure, held_out_prompts, shapes_features
from distillkit.embedded.shapes.world import parse, shipped_prompts
from distillkit.evaluation.generator import teacher_generator
from distillkit.evaluation.pipeline import measure
from distillkit.evaluation.presets import default_protocol
from distillkit.evaluation.teacher_record import record_key
from distillkit.jobs.prompts import with_prompts
from distillkit.models.diffusers.vae import ON_A_CPU

CPU = torch.device("cpu")


def measured_alignment(pixels, prompts):
    """The share of attributes of pictures that are as their prompts say, (B,)."""
    with torch.no_grad():
        return agreement(shapes_features().probabilities(pixels), [parse(prompt) for prompt in prompts])["all"]


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("shapes")


def test_it_comes_with_its_prompts_and_draws_what_they_say(teacher):
    assert teacher.conditioner.count == 2000 and teacher.conditioner.texts[0] == shipped_prompts()[0]
    assert default_protocol(teacher) == "shapes"
    prompts = list(held_out_prompts()[:24])
    condition = teacher.conditioner.encode(teacher.conditioner.parse(prompts))
    noise = torch.randn(24, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = teacher.codec.decode(teacher.sample(noise, condition, steps=8, guidance=2.0))
    assert measured_alignment(pixels, prompts).mean() > 0.97
    turned = [*prompts[1:], prompts[0]]
    assert measured_alignment(pixels, turned).mean() < 0.6, "the figure does not look at the prompts"


def test_sentences_of_the_protocol_are_none_of_those_that_ship():
    held_out = held_out_prompts()
    assert len(set(held_out)) == 2000 and not set(held_out) & set(shipped_prompts())
    assert all(parse(prompt) for prompt in held_out)
    assert ShapesMeasure().protocol.id == "p1-ca5a04856b3cbc76"


def test_its_record_ships_for_a_run_and_for_itself(teacher):
    protocol = ShapesMeasure()
    for own in (teacher, with_prompts(teacher, None, PromptsConfig().dtype)):
        shipped = teacher.records[record_key(teacher_generator(own), protocol)]
        assert shipped["figures"]["alignment[shapescnn]-2000"]["value"] > 0.99 and shipped["nfe"] == 20


def test_both_figures_come_from_the_same_samples(teacher):
    record = measure(teacher_generator(teacher, 4, guidance=2.0), ShapesMeasure(), device=CPU, count=40)
    names = [name.partition("[")[0] for name in record.figures]
    assert names[:2] == ["FD", "alignment"] and "alignment/colour" in names and record.nfe == 8
    assert record.figures["alignment[shapescnn]-40"].value > 0.9
    assert record.figures["alignment[shapescnn]-40"].standard_error is not None
    with pytest.raises(UsageError, match="elephant"):
        measure(teacher_generator(teacher, 1), ShapesMeasure().with_prompts(["a purple elephant"]), device=CPU, count=4)


def test_its_data_are_drawn_as_its_training_saw_them(teacher):
    images = teacher.images(CPU).batch(SampleRNG(3), 0, range(64))
    again = teacher.images(CPU).batch(SampleRNG(3), 0, range(32, 64))
    assert torch.allclose(images.sample[32:], again.sample, atol=1e-4)
    keys = teacher.conditioner.draw(SampleRNG(3).uniform("images", 0, range(64)))
    pixels = teacher.codec.decode(images.sample)
    assert measured_alignment(pixels, teacher.conditioner.names(keys)).mean() > 0.99
    # Of the mean of the autoencoder's code alone it would be 0.87.
    assert 0.95 < images.sample.std() < 1.05


def test_prompts_of_another_world_have_no_pictures_and_the_message_says_so():
    teacher = load_teacher("shapes")
    teacher.conditioner = teacher.conditioner.with_prompts(PromptList.of(["a purple elephant"], "one"))
    with pytest.raises(UsageError, match="elephant"):
        teacher.images(CPU).batch(SampleRNG(0), 0, range(2))


def test_its_one_step_student_is_trained_measured_and_loaded(tmp_path):
    prompts = PromptList.of(shipped_prompts()[:12], "twelve")
    teacher = load_teacher("shapes")
    teacher.conditioner = teacher.conditioner.with_prompts(prompts)
    run = distil(
        "dmd", teacher=teacher, output_dir=tmp_path / "run", duration=32, batch=8, pairs_count=16, pairs_steps=2,
        evaluation_samples=20, evaluate_samples=20, quiet=True, device="cpu",
    )  # fmt: skip
    assert [row.nfe for row in run.rows] == [20, 1, 1]
    assert "alignment[shapescnn]-20" in run.record.figures
    student = load_student(run.folder)
    made = student(3, prompts=["a large red circle on white", "a small green square on black"])
    assert made.shape == (3, 3, 32, 32) and made.dtype == torch.uint8
    assert student.conditioner.listed == prompts.sha256 and student.conditioner.count == 12


def test_on_a_cpu_pictures_are_decoded_in_passes_that_fit_its_caches(teacher):
    codec, sizes = teacher.codec, []
    latents = torch.randn(70, *teacher.spec.shape, generator=torch.Generator().manual_seed(0))
    hook = codec._loaded().decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        made, whole = codec.images(latents), codec._decoded(latents)
    finally:
        hook.remove()
    assert sizes == [32, 32, 6, 70] and ON_A_CPU == 32 * 32**2
    torch.testing.assert_close(made, codec._pixels.images(whole), rtol=1e-4, atol=1e-5)
