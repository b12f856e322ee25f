"""Every family of pipelines against diffusers' own: encodings, latents from the same noise, decoded images."""

import math

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from distillkit import UsageError, load_teacher
from distillkit.models.diffusers.flux import packed, places, unpacked
from distillkit.parts import DiscriminatorHead
from tests.models import pipelines

WORDS = ["a red cat", "", "two dogs on a very long road to the north"]
"""Different prompts, the empty one and one that is cut at the tokenizer's limit among them."""
TOLERANCE = 2e-5
"""Of the largest number: the same operations in float32, but the solver's state, which is float64 here."""


def same(ours, theirs, tolerance=TOLERANCE):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def built(folder, build, *, without=(), **changes):
    """(the teacher, diffusers' pipeline) of a tiny pipeline; `without` are the components that it does not have."""
    place = build(folder / "tiny", **changes)
    pipeline = DiffusionPipeline.from_pretrained(place, local_files_only=True, **dict.fromkeys(without))
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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"out_channels": 4, "sample_size": 6, "options": {"prediction_type": "v_prediction"},
         "autoencoder": {"scaling_factor": 0.4}},
    ],
    ids=["learned variance", "other widths"],
)  # fmt: skip
@torch.no_grad()
def test_dit(changes, tmp_path):
    teacher, pipeline = built(tmp_path, pipelines.dit, **changes)
    numbers = [7, 999, 0]
    noise = torch.randn(3, *teacher.spec.shape, generator=torch.manual_seed(5))
    condition = teacher.conditioner.encode(torch.tensor(numbers))
    for guidance in (1.0, 7.5):
        made = pipeline(
            numbers, guidance_scale=guidance, generator=torch.manual_seed(5), num_inference_steps=4, output_type="np"
        )
        ours = teacher.sample(noise, condition, steps=4, solver="ddim", guidance=guidance)
        images = torch.from_numpy(made.images).permute(0, 3, 1, 2)
        same((teacher.codec.images(ours) / 2 + 0.5).clamp(0, 1), images, 1e-4)
        assert images.std() > 0.01


def test_classes_of_dit_go_by_their_first_names(tmp_path):
    names = {number: f"thing {number}, thingum" for number in range(1000)} | {3: "crane, bird", 4: "crane, machine"}
    pipelines.change(pipelines.dit(tmp_path / "tiny") / "model_index.json", id2label=names)
    teacher = load_teacher(str(tmp_path / "tiny"))
    assert teacher.conditioner.parse(["thing 12", "crane, machine", "5"]).tolist() == [12, 4, 5]
    null = teacher.conditioner.null(teacher.conditioner.encode(torch.tensor([1, 2])))
    assert null["labels"].tolist() == [-1, -1] and teacher.denoiser.model.null == 1000


@pytest.mark.parametrize(
    ("changes", "solver", "tokens"),
    [
        ({}, "ddim", 120),
        ({"sigma": True}, "ddim", 300),
        ({"noise": "EulerDiscrete", "out_channels": 4, "attention_head_dim": 12, "cross_attention_dim": 24,
          "options": {"timestep_spacing": "trailing"}}, "euler", 120),
    ],
    ids=["alpha", "sigma", "other widths"],
)  # fmt: skip
def test_pixart(changes, solver, tokens, tmp_path):
    teacher, pipeline = built(tmp_path, pipelines.pixart, **changes)
    condition = conditions(teacher, WORDS)
    text, mask, null, null_mask = pipeline.encode_prompt(WORDS, True, device="cpu", max_sequence_length=tokens)
    same(condition["text"], text)
    assert torch.equal(condition["mask"], mask.float()) and mask.shape[1] == tokens
    without = teacher.conditioner.null(condition)
    same(without["text"], null)
    assert torch.equal(without["mask"], null_mask.float())
    assert_samples(teacher, pipeline, solver, use_resolution_binning=False)
    assert_encodings_are_alone(teacher)
    assert torch.equal(conditions(teacher, ["  A red CAT "])["text"][0], condition["text"][0])


WEB_CAPTIONS = [
    "  A red CAT &amp; “two dogs”  http://example.com/cat.jpg @someone #123 ",
    "photo_of_my_cute_cat_img1234.png ***SALE***", "<p>a blue house</p> – 1024x768, free download",
    "a cat\\non the road…", "",
]  # fmt: skip


@pytest.mark.parametrize(("sigma", "tokens"), [(False, 120), (True, 300)], ids=["alpha", "sigma"])
@torch.no_grad()
def test_pixart_cleans_captions_as_its_pipeline_does_by_default(sigma, tokens, tmp_path):
    teacher, pipeline = built(tmp_path, pipelines.pixart, sigma=sigma)
    condition = conditions(teacher, WEB_CAPTIONS)
    text, mask, *_ = pipeline.encode_prompt(
        WEB_CAPTIONS, False, device="cpu", max_sequence_length=tokens, clean_caption=True
    )
    same(condition["text"], text)
    assert torch.equal(condition["mask"], mask.float())
    noise = noise_for(teacher, len(WEB_CAPTIONS))
    asked = {"num_inference_steps": 2, "guidance_scale": 4.0, "use_resolution_binning": False}
    theirs = pipeline(WEB_CAPTIONS, latents=noise, output_type="latent", height=16, width=16, **asked).images
    same(teacher.sample(noise, condition, steps=2, solver="ddim", guidance=4.0), theirs)
    encoder = teacher.conditioner.encoder
    plain = encoder.model_copy(update={"clean": False})
    rough, *_ = pipeline.encode_prompt(WEB_CAPTIONS, False, device="cpu", max_sequence_length=tokens)
    same(plain.encode(WEB_CAPTIONS)["text"], rough)
    assert not torch.allclose(rough, text) and plain.model_dump() != encoder.model_dump()


def test_pixart_counts_what_is_read_of_a_caption(tmp_path):
    encoder = built(tmp_path, pipelines.pixart)[0].conditioner.encoder
    assert encoder.too_long(["cat " * 200, "a http://example.com/" + "a/" * 200 + " cat"]) == [0]


@torch.no_grad()
def test_pixart_that_sees_the_size_of_the_picture(tmp_path):
    wide = {"attention_head_dim": 12, "cross_attention_dim": 24, "sample_size": 128, "patch_size": 16}
    teacher, pipeline = built(tmp_path, pipelines.pixart, **wide)
    noise, condition = noise_for(teacher, 1), conditions(teacher, WORDS[:1])
    assert condition["resolution"].tolist() == [[256, 256]] and condition["aspect_ratio"].tolist() == [[1.0]]
    theirs = pipeline(
        WORDS[0], latents=noise, guidance_scale=7.5, num_inference_steps=2, output_type="latent",
        use_resolution_binning=False,
    ).images  # fmt: skip
    same(teacher.sample(noise, condition, steps=2, solver="ddim", guidance=7.5), theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"third": False, "options": {"shift": 1.0}},
        {"options": {"use_dynamic_shifting": True, "base_shift": 0.6}, "sample_size": 6},
        {"num_attention_heads": 3, "caption_projection_dim": 24, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1),
         "sample_size": 10, "options": {"shift_terminal": 0.1}, "autoencoder": {"shift_factor": 0.3}},
    ],
    ids=["as is", "without T5", "dynamic shift", "other widths"],
)  # fmt: skip
def test_stable_diffusion_3(changes, tmp_path):
    without = () if changes.get("third", True) else ("text_encoder_3", "tokenizer_3")
    teacher, pipeline = built(tmp_path, pipelines.sd3, without=without, **changes)
    condition = conditions(teacher, WORDS)
    text, null, pooled, null_pooled = pipeline.encode_prompt(WORDS, None, None, "cpu")
    without = teacher.conditioner.null(condition)
    for ours, theirs in (
        (condition["text"], text), (condition["pooled"], pooled), (without["text"], null),
        (without["pooled"], null_pooled),
    ):  # fmt: skip
        same(ours, theirs)
    assert text.shape[1] == 16 + 256
    assert_samples(teacher, pipeline, "euler")
    assert_encodings_are_alone(teacher)


@pytest.mark.parametrize(
    "changes",
    [
        {"guided": False},
        {"guided": False, "num_layers": 2, "num_attention_heads": 3, "options": {"shift": 2.0},
         "autoencoder": {"latent_channels": 8}, "in_channels": 32},
    ],
    ids=["as is", "other widths"],
)  # fmt: skip
@torch.no_grad()
def test_flux_without_embedded_guidance(changes, tmp_path):
    teacher, pipeline = built(tmp_path, pipelines.flux, **changes)
    assert_flux_encodes(teacher, pipeline)
    assert teacher.spec.shape[1:] == (128, 128) and teacher.conditioner.has_null
    noise, condition = torch.randn(3, teacher.spec.shape[0], 8, 6), conditions(teacher, WORDS)
    same(teacher.sample(noise, condition, steps=4), by_flux(pipeline, noise))
    for negative in ("", "a blue dog"):
        away = conditions(teacher, [negative] * 3)
        theirs = by_flux(pipeline, noise, true_cfg_scale=7.5, negative_prompt=[negative] * 3)
        same(teacher.sample(noise, condition, steps=4, guidance=7.5, negative=away), theirs)
    same(teacher.sample(noise, condition, steps=4, guidance=7.5), by_flux(
        pipeline, noise, true_cfg_scale=7.5, negative_prompt=[""] * 3
    ))  # fmt: skip
    images = pipeline(WORDS, latents=packed(noise), num_inference_steps=4, height=16, width=12, output_type="np").images
    decoded = teacher.codec.decode(teacher.sample(noise, condition, steps=4))
    assert (decoded - torch.from_numpy(images).permute(0, 3, 1, 2) * 255).abs().max() <= 0.51


@torch.no_grad()
def test_flux_with_embedded_guidance(tmp_path):
    teacher, pipeline = built(tmp_path, pipelines.flux)
    assert_flux_encodes(teacher, pipeline)
    condition = conditions(teacher, WORDS)
    assert condition["guidance"].tolist() == [3.5] * 3
    # The shift is that of the sample's size, at the teacher's own as at others.
    assert teacher.schedule.shift == pytest.approx(math.exp(1.15))
    for height, width in ((8, 8), (12, 20)):
        noise = torch.randn(3, 4, height, width)
        for guidance in (1.0, 3.5, 7.5):
            guided = condition.extended(guidance=torch.full((3,), guidance))
            theirs = by_flux(pipeline, noise, guidance_scale=guidance)
            same(teacher.sample(noise, guided, steps=4, solver="euler"), theirs)
    # Guided twice only where it is asked for by name.
    assert not teacher.conditioner.has_null
    with pytest.raises(UsageError, match=r"guidance 1.*negative"):
        teacher.sample(noise, condition, steps=4, guidance=3.5)
    away = conditions(teacher, ["a blue dog"] * 3)
    theirs = by_flux(pipeline, noise, true_cfg_scale=2.0, guidance_scale=3.5, negative_prompt=["a blue dog"] * 3)
    same(teacher.sample(noise, condition, steps=4, guidance=2.0, negative=away), theirs)


def assert_flux_encodes(teacher, pipeline):
    text, pooled, _ = pipeline.encode_prompt(WORDS, None, "cpu")
    condition = conditions(teacher, WORDS)
    same(condition["text"], text)
    same(condition["pooled"], pooled)
    assert text.shape[1] == 512
    assert_encodings_are_alone(teacher)


def by_flux(pipeline, noise, **asked):
    """Latents (B, C, h, w) of diffusers' pipeline from the same noise."""
    height, width = noise.shape[2:]
    size = {"height": 2 * height, "width": 2 * width}
    made = pipeline(WORDS, latents=packed(noise), num_inference_steps=4, output_type="latent", **size, **asked)
    return pipeline._unpack_latents(made.images, 2 * height, 2 * width, 2)


def test_packing_is_diffusers_own():
    x = torch.randn(2, 3, 8, 6)
    theirs = FluxPipeline._pack_latents(x, 2, 3, 8, 6)
    assert torch.equal(packed(x), theirs) and torch.equal(unpacked(theirs, 4, 3), x)
    ids = FluxPipeline._prepare_latent_image_ids(2, 4, 3, "cpu", torch.float32)
    assert torch.equal(places(4, 3, x), ids)


@torch.no_grad()
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (pipelines.stable_diffusion, (32, 4, 4)),
        (pipelines.dit, (16, 4, 4)),
        (pipelines.pixart, (16, 4, 4)),
        (pipelines.sd3, (16, 4, 4)),
        (pipelines.flux, (32, 64, 64)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_discriminators_find_a_map_of_features(build, shape, tmp_path):
    teacher = load_teacher(str(build(tmp_path / "tiny")))
    head = DiscriminatorHead.on(teacher.denoiser, teacher)
    keys = teacher.conditioner.draw(torch.zeros(2, dtype=torch.float64))
    condition, x = teacher.conditioner.encode(keys), noise_for(teacher, 2)
    t = torch.full((2,), float(teacher.schedule.grid(3)[1]))
    [found] = teacher.denoiser.features(x, t, condition)
    assert found.shape == (2, *shape) and head([found]).shape == (2, 1)
    whole, [again] = teacher.denoiser.with_features(x, t, condition)
    assert torch.equal(again, found) and torch.equal(whole, teacher.denoiser(x, t, condition))
    # A place of the map answers to the same place of the sample more than to others.
    moved = x.clone()
    moved[:, :, : x.shape[2] // 2] += 1
    change = (teacher.denoiser.features(moved, t, condition)[0] - found).square().sum((0, 1, 3))
    half = len(change) // 2
    assert change[:half].sum() > change[half:].sum()
    # Copies find their own.
    copied = teacher.copy_denoiser()
    copied.model.bottleneck.register_forward_hook(lambda *args: pytest.fail("the teacher's features asked the copy"))
    teacher.denoiser.features(x, t, condition)
