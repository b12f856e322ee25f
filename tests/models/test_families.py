"""Every family of pipelines against diffusers' own: encodings, latents from the same noise, decoded images."""

import pytest
import torch
from diffusers import DiffusionPipeline

from distillkit import load_teacher
from tests.models import pipelines

WORDS = ["a red cat", "", "two dogs on a very long road to the north"]
"""Different prompts, the empty one and one that is cut at the tokenizer's limit among them."""
TOLERANCE = 2e-5
"""Of the largest number: the same operations in float32, but the solver's state, which is float64 here."""


def same(ours, theirs, tolerance=TOLERANCE):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def built(folder, build, **changes):
    """(the teacher, diffusers' pipeline) of a tiny pipeline."""
    place = build(folder / "tiny", **changes)
    pipeline = DiffusionPipeline.from_pretrained(place, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return load_teacher(str(place)), pipeline


def noise_for(teacher, count):
    return torch.randn(count, *teacher.spec.shape, generator=torch.Generator().manual_seed(3))


def conditions(teacher, texts):
    return teacher.conditioner.encode(teacher.conditioner.parse(texts))


@torch.no_grad()
def assert_samples(teacher, pipeline, solver, *, tolerance=TOLERANCE, steps=4, **asked):
    """Latents with guidance 1 and 7.5, without and with a negative prompt, and the images of some."""
    noise = noise_for(teacher, len(WORDS))
    condition = conditions(teacher, WORDS)
    factor = teacher.codec.factor
    size = {"height": noise.shape[2] * factor, "width": noise.shape[3] * factor}
    for guidance, negative in ((1.0, None), (7.5, None), (7.5, "a blue dog"), (3.0, "")):
        given = {**size, **asked, "latents": noise, "num_inference_steps": steps, "guidance_scale": guidance}
        if negative is not None:
            given["negative_prompt"] = [negative] * len(WORDS)
        theirs = pipeline(WORDS, output_type="latent", **given).images
        away = None if negative is None else conditions(teacher, [negative] * len(WORDS))
        ours = teacher.sample(noise, condition, steps=steps, solver=solver, guidance=guidance, negative=away)
        same(ours, theirs, tolerance)
    images = torch.from_numpy(pipeline(WORDS, output_type="np", **given).images).permute(0, 3, 1, 2)
    same((teacher.codec.images(ours) / 2 + 0.5).clamp(0, 1), images, 1e-4)
    assert (teacher.codec.decode(ours) - images * 255).abs().max() <= 0.51
    assert images.std() > 0.01


@torch.no_grad()
def assert_encodings_are_alone(teacher):
    """An encoding is of its text alone, whatever else is encoded with it."""
    together = conditions(teacher, WORDS)
    for number, text in enumerate(WORDS):
        alone = conditions(teacher, [text])
        for name, value in alone.items():
            torch.testing.assert_close(value[0], together[name][number], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(*(next(iter(conditions(teacher, [text]).values())) for text in WORDS[:2]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"noise": "PNDM"},
        {"options": {"prediction_type": "v_prediction", "timestep_spacing": "trailing",
                     "rescale_betas_zero_snr": True}},
        {"block_out_channels": (8, 24), "use_linear_projection": True, "attention_head_dim": (2, 4),
         "sample_size": (8, 12), "text": {"width": 24, "use_attention_mask": True}, "cross_attention_dim": 24,
         "autoencoder": {"scaling_factor": 0.4, "shift_factor": 0.2}},
    ],
    ids=["as is", "PNDM", "zero terminal SNR", "other widths"],
)  # fmt: skip
def test_stable_diffusion(changes, tmp_path):
    teacher, pipeline = built(tmp_path, pipelines.stable_diffusion, **changes)
    if changes.get("noise") == "PNDM":
        from diffusers import DDIMScheduler

        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    theirs, null = pipeline.encode_prompt(WORDS, "cpu", 1, True)
    same(conditions(teacher, WORDS)["text"], theirs)
    same(teacher.conditioner.null(conditions(teacher, WORDS))["text"], null)
    assert_samples(teacher, pipeline, "ddim")
    assert_encodings_are_alone(teacher)


@pytest.mark.parametrize("solver", ["euler", "ddim"])
def test_stable_diffusion_xl(solver, tmp_path):
    noise = {"euler": "EulerDiscrete", "ddim": "DDIM"}[solver]
    teacher, pipeline = built(tmp_path, pipelines.sdxl, noise=noise)
    condition = conditions(teacher, WORDS)
    text, null, pooled, null_pooled = pipeline.encode_prompt(WORDS, None, "cpu", 1, True)
    same(condition["text"], text)
    same(condition["pooled"], pooled)
    assert condition["sizes"].tolist() == [[16, 16, 0, 0, 16, 16]] * 3
    without = teacher.conditioner.null(condition)
    assert not without["text"].any() and not without["pooled"].any() and not null.any() and not null_pooled.any()
    assert torch.equal(without["sizes"], condition["sizes"])
    assert_samples(teacher, pipeline, solver)
    assert_encodings_are_alone(teacher)


@pytest.mark.parametrize(
    "changes",
    [
        {"zeros": False},
        {"first": False, "options": {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}},
        {"sample_size": (8, 12), "block_out_channels": (8, 16),
         "autoencoder": {"scaling_factor": 0.5, "latents_mean": [0.1, -0.2, 0.3, 0.0],
                         "latents_std": [0.9, 1.1, 2.0, 1.0]}},
    ],
    ids=["null is the empty prompt", "one CLIP", "other sizes"],
)  # fmt: skip
def test_stable_diffusion_xl_off_default(changes, tmp_path):
    teacher, pipeline = built(tmp_path, pipelines.sdxl, **changes)
    if "zeros" in changes:
        condition = conditions(teacher, WORDS)
        same(teacher.conditioner.null(condition)["text"], conditions(teacher, [""] * 3)["text"])
    assert_samples(teacher, pipeline, "euler")
