"""A student of adapters as a LoRA and merged: plain diffusers makes the same of both as distillkit."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from distillkit import OneStep, UsageError, load_student
from distillkit.contracts.adapter import AdapterConfig
from distillkit.diffusion import RenoisingSampler
from distillkit.models.adapters import layers_of
from distillkit.students.export import export
from tests.adapters.students import ADAPTER, saved_student
from tests.models.pipelines import flux, pixart, sd3, sdxl, stable_diffusion
from tests.students.test_plain_pipeline import PROMPTS, latents_of, snippet

LORA = {
    "sd": (stable_diffusion, "unet", RenoisingSampler(levels=(999.0, 499.0)), AdapterConfig(
        rank=4, alpha=8, targets=("to_q", "to_out.0", "proj_in", "conv1", "ff.net.2")
    )),
    "sdxl": (sdxl, "unet", OneStep(), ADAPTER),
    "sd3": (sd3, "transformer", OneStep(t=1.0), ADAPTER),
    "flux": (flux, "transformer", OneStep(t=1.0), ADAPTER),
}  # fmt: skip


def theirs(pipeline, folder, noise, generator=3):
    """Latents that a pipeline makes, called as the card says."""
    pipeline.set_progress_bar_config(disable=True)
    written = snippet(folder).partition("image = pipeline(")[2].partition(").images")[0]
    call = eval(f"(lambda prompt='', **call: call)({written})")
    latents = noise
    if hasattr(pipeline, "_pack_latents"):
        latents = pipeline._pack_latents(noise, *noise.shape[:2], *noise.shape[2:])
    made = pipeline(
        PROMPTS, latents=latents, output_type="latent", generator=torch.Generator().manual_seed(generator), **call
    ).images
    if hasattr(pipeline, "_unpack_latents"):
        height, width = (pipeline.vae_scale_factor * side for side in noise.shape[2:])
        made = pipeline._unpack_latents(made, height, width, pipeline.vae_scale_factor)
    return made


def as_the_card_says(folder):
    """The pipeline that the card's snippet loads."""
    known = {}
    load = snippet(folder).partition("image = ")[0].replace("path/to/this/folder", str(folder))
    exec(load, known)
    return known["pipeline"]


@pytest.mark.parametrize("name", LORA)
def test_a_lora_and_merged_weights_are_the_student(tmp_path, name):
    make, component, sampler, config = LORA[name]
    source = make(tmp_path / "teacher")
    student = saved_student(tmp_path / "student", source, config, sampler)
    noise = torch.randn(2, *student.generator.shape)
    ours = latents_of(student, noise)
    scale = ours.abs().max().item()

    export(student, "diffusers-lora", tmp_path / "lora")
    keys = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert len(keys) == 2 * len(layers_of(student.generator))
    assert all(key.startswith(f"{component}.") and "default" not in key for key in keys)
    pipeline = as_the_card_says(tmp_path / "lora")
    torch.testing.assert_close(theirs(pipeline, tmp_path / "lora", noise) / scale, ours / scale, rtol=0, atol=1e-4)
    # The adapters are what makes the difference.
    pipeline.unload_lora_weights()
    assert (theirs(pipeline, tmp_path / "lora", noise) - ours).abs().max() > 0.01 * scale

    export(student, "diffusers", tmp_path / "merged", self_contained=True)
    merged = DiffusionPipeline.from_pretrained(tmp_path / "merged", use_safetensors=True)
    torch.testing.assert_close(theirs(merged, tmp_path / "merged", noise) / scale, ours / scale, rtol=0, atol=1e-4)
    again = load_student(tmp_path / "merged")
    assert again.description.adapter is None
    torch.testing.assert_close(latents_of(again, noise) / scale, ours / scale, rtol=0, atol=1e-5)


def test_pipelines_that_load_no_lora_take_merged_weights(tmp_path):
    student = saved_student(tmp_path / "student", pixart(tmp_path / "teacher"))
    with pytest.raises(UsageError, match="PixArtAlphaPipeline of diffusers loads no LoRA; --to diffusers writes"):
        export(student, "diffusers-lora", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    export(student, "diffusers", tmp_path / "merged", self_contained=True)
    noise = torch.randn(2, *student.generator.shape)
    ours = latents_of(student, noise)
    made = theirs(DiffusionPipeline.from_pretrained(tmp_path / "merged"), tmp_path / "merged", noise)
    torch.testing.assert_close(made / ours.abs().max(), ours / ours.abs().max(), rtol=0, atol=1e-4)


def test_other_students_are_told_which_format_they_have(tmp_path, tiny_teacher_folder, tiny_teacher):
    student = saved_student(tmp_path / "student", tiny_teacher_folder)
    with pytest.raises(UsageError, match="tiny is no pipeline of diffusers that loads a LoRA; --to diffusers writes"):
        export(student, "diffusers-lora", tmp_path / "lora")
    export(student, "diffusers", tmp_path / "merged")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    images = pipeline(batch_size=3, class_labels=[0, 1, 2], output_type="pt").images
    assert images.shape == (3, 1, 8, 8)
    whole = student.merged()
    with pytest.raises(UsageError, match="no adapters but weights of its own"):
        export(whole, "diffusers-lora", tmp_path / "lora")
    assert torch.equal(whole(4, seed=0), student(4, seed=0))


def test_the_base_of_a_lora_can_come_along(tmp_path):
    student = saved_student(tmp_path / "student", stable_diffusion(tmp_path / "teacher"))
    export(student, "diffusers-lora", tmp_path / "lora", self_contained=True)
    noise = torch.randn(2, *student.generator.shape)
    ours = latents_of(student, noise)
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    made = theirs(as_the_card_says(tmp_path / "lora"), tmp_path / "lora", noise)
    torch.testing.assert_close(made / ours.abs().max(), ours / ours.abs().max(), rtol=0, atol=1e-4)
