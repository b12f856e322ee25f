"""The pipeline of the teacher `shapes`, as plain diffusers loads and samples it, and the tool of its classifier."""

import json
import sys

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from distillkit import DistillkitError
from distillkit.embedded import assets
from distillkit.embedded.shapes import classifier, world
from tools.shapes import train_classifier

PIPELINE = "shapes/pipeline"


@pytest.fixture(scope="module")
def pipeline():
    loaded = StableDiffusionPipeline.from_pretrained(assets.asset_folder(PIPELINE))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_its_pictures_are_as_the_sentences_say(pipeline):
    prompts = world.shipped_prompts()[:32]
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 12, "guidance_scale": 3.0, "output_type": "pt", "generator": generator}
    pictures = pipeline(prompts, **options).images
    assert pictures.shape == (32, 3, 32, 32)
    with torch.inference_mode():
        shares = classifier.agreement(classifier.shapes_cnn()[0](pictures * 2 - 1), list(map(world.parse, prompts)))
    assert shares["all"].mean() >= 0.9
    others = classifier.agreement(classifier.shapes_cnn()[0](pictures * 2 - 1), list(map(world.parse, prompts[::-1])))
    assert others["all"].mean() < 0.7, "any picture would do"


def test_pictures_pass_through_its_vae(pipeline):
    scenes = world.distinct_scenes(100, 7)
    pictures = world.draw_all(world.codes(scenes), torch.Generator().manual_seed(0)).float() / 127.5 - 1
    with torch.inference_mode():
        latents = pipeline.vae.encode(pictures).latent_dist
        back = pipeline.vae.decode(latents.mean).sample
        shares = classifier.agreement(classifier.shapes_cnn()[0](back.clamp(-1, 1)), scenes)
    assert latents.mean.shape == (100, 4, 8, 8) and shares["all"].mean() >= 0.99
    sampled = latents.sample(torch.Generator().manual_seed(0)) * pipeline.vae.config.scaling_factor
    assert sampled.std().item() == pytest.approx(1, abs=0.05)


def test_plain_diffusers_computes_in_float32_and_starts_with_some_signal(pipeline):
    computing = {name: part.dtype for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert computing == dict.fromkeys(("vae", "text_encoder", "unet"), torch.float32)
    scheduler = pipeline.scheduler
    assert isinstance(scheduler, DDIMScheduler) and scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(30)
    assert scheduler.timesteps[0] == 999 and 0.01 < scheduler.alphas_cumprod[-1].sqrt() < 0.1


def test_shipped_files_are_small_half_precision_and_hashed():
    files = {
        name: path for name, path in assets.shipped_files().items() if path.is_relative_to(assets.FOLDER / "shapes")
    }
    assert sum(path.stat().st_size for path in files.values()) < 8e6
    networks = [name for name in files if name.startswith(PIPELINE) and name.endswith(".safetensors")]
    assert len(networks) == 3
    for name in networks:
        assert {value.dtype for value in load_file(files[name]).values()} == {torch.float16}
    assert set(files) <= set(assets.asset_hashes())


def test_an_altered_file_of_the_folder_is_refused(monkeypatch):
    name = f"{PIPELINE}/vae/config.json"
    monkeypatch.setattr(assets, "asset_hashes", lambda: {name: "0" * 64})
    monkeypatch.setattr(assets, "asset_path", assets.asset_path.__wrapped__)
    with pytest.raises(DistillkitError, match=r"pipeline/vae/config\.json is missing or altered"):
        assets.asset_folder.__wrapped__(PIPELINE)


def test_tokens_are_whole_words_and_other_words_are_unknown(pipeline):
    tokenizer = pipeline.tokenizer
    assert isinstance(tokenizer, CLIPTokenizer) and tokenizer.model_max_length == 24
    longest = max(map(world.sentence, world.all_scenes()), key=lambda text: len(text.split()))
    assert tokenizer.convert_ids_to_tokens(tokenizer(longest).input_ids)[1:-1] == longest.split()
    assert set(tokenizer("dog jumping").input_ids[1:-1]) == {tokenizer.unk_token_id}
    assert tokenizer("on reddish").input_ids[2:-1] == [tokenizer.unk_token_id] * len("reddish")
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_the_tool_trains_the_classifier_and_goes_on(tmp_path, monkeypatch, capsys):
    prompts = ["a small red circle on white", "a large blue square on grey"]
    monkeypatch.setattr(train_classifier, "shipped_prompts", lambda: prompts)

    def tool(steps):
        few = ["--pictures", "16", "--batch", "4", "--steps", str(steps), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["train_classifier", "--output", str(tmp_path), *few])
        train_classifier.main()
        return capsys.readouterr().out

    tool(2)
    again = tool(4)
    assert "step 2 of" in again and "step 4 of" in again and "step 1 of" not in again
    tensors = load_file(tmp_path / classifier.WEIGHTS)
    assert set(tensors) == {*classifier.ShapesCNN().state_dict(), "scale"}


def test_what_earlier_releases_of_transformers_need_is_there():
    folder = assets.asset_folder(PIPELINE) / "text_encoder"
    assert all(name.startswith("text_model.") for name in load_file(folder / "model.safetensors"))
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
