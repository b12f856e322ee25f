"""CLIPs in open_clip's format: features equal those that open_clip itself gave (goldens, a tiny random model)."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillkit import DistillkitError, UsageError
from distillkit.evaluation.clip import Clip, clip_figure
from distillkit.models.text import open_clip
from tests.conftest import GOLDENS
from tests.models.pipelines import change, clip_tokenizer, quiet

TENSORS = load_file(GOLDENS / "open_clip.safetensors")
SAID = json.loads((GOLDENS / "open_clip.json").read_text())
STATE = {name.removeprefix("weights/"): value for name, value in TENSORS.items() if name.startswith("weights/")}
IMAGES = {name: TENSORS[f"images/{name}"] for name in ("wide", "tall", "small")}


def written(folder, state=STATE, **model):
    """A folder as open_clip saves a model to the hub."""
    quiet()
    clip_tokenizer(folder / "words").save_pretrained(folder)
    shutil.rmtree(folder / "words")
    config = {"model_cfg": SAID["model_cfg"] | model, "preprocess_cfg": {"interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@torch.no_grad()
def features(folder):
    clip = Clip(str(folder))
    images = torch.cat([clip(image.permute(2, 0, 1)[None]) for image in IMAGES.values()])
    return images, clip.texts(SAID["texts"])


def close(found, kind):
    for name, value in zip(("image", "text"), found, strict=True):
        torch.testing.assert_close(value, TENSORS[f"{kind}/{name}_features"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["gelu", "quick_gelu"])
def test_features_are_those_of_open_clip(kind, tmp_path):
    close(features(written(tmp_path, quick_gelu=kind == "quick_gelu")), kind)
    assert (TENSORS["gelu/text_features"] - TENSORS["quick_gelu/text_features"]).abs().max() > 1e-3


def test_towers_apart_and_weights_saved_by_torch(tmp_path):
    """CustomTextCLIP names the text's tower; .bin files are read without executing them."""
    texts = ("transformer.", "token_embedding", "positional_embedding", "ln_final", "text_projection")
    apart = {f"text.{name}" if name.startswith(texts) else name: value for name, value in STATE.items()}
    folder = written(tmp_path, apart, custom_text=True)
    torch.save(apart, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_model.safetensors").unlink()
    close(features(folder), "gelu")


def test_images_are_prepared_as_open_clip_does(tmp_path):
    """Shortest side, the crop's rounding, moments: a wide, a tall and a small image, none with an even rest."""
    clip = Clip(str(written(tmp_path)))
    for image, pixels in zip(IMAGES.values(), TENSORS["pixels"], strict=True):
        values = torch.from_numpy(clip.images.resized(image.numpy()).copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close((values - clip.mean) / clip.std, pixels, rtol=0, atol=1e-6)


def test_what_is_not_in_the_weights_is_in_the_protocol(tmp_path):
    made = {}
    for name, changes in {
        "plain": {}, "activation": {"quick_gelu": True},
        "heads": {"text_cfg": SAID["model_cfg"]["text_cfg"] | {"heads": 4}},
    }.items():  # fmt: skip
        (tmp_path / name / "clip").mkdir(parents=True)
        made[name] = Clip(str(written(tmp_path / name / "clip", **changes))).spec
    assert len({spec.model_dump_json() for spec in made.values()}) == 3
    assert len({spec.weights_sha256 for spec in made.values()}) == 1
    folder = tmp_path / "plain" / "clip"
    change(folder / "open_clip_config.json", preprocess_cfg={"mean": 0.5, "std": [0.5, 0.5, 0.25]})
    clip = Clip(str(folder))
    assert clip.spec != made["plain"] and clip.std.flatten().tolist() == [0.5, 0.5, 0.25]
    pictures = IMAGES["wide"].permute(2, 0, 1)[None].expand(4, -1, -1, -1)
    with torch.no_grad():
        assert clip_figure(clip(pictures), clip, SAID["texts"]).value != 0


def test_the_format_of_transformers_is_preferred(tmp_path):
    folder = written(tmp_path)
    assert open_clip.is_open_clip(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    close(features(folder), "gelu")  # a configuration alone is no model
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UsageError, match="bert"):
        Clip(str(folder))


@pytest.mark.parametrize(
    ("place", "changes", "named"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base"}, "timm_model_name"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "layers"), ("text_cfg", {"heads": 3}, "heads"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type"), ("vision_cfg", {"image_size": [24, 32]}, "image_size"),
        ("text_cfg", {"pool_type": "last"}, "pool_type"), ("text_cfg", {"no_causal_mask": True}, "no_causal_mask"),
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}, "hf_model_name"),
        ("text_cfg", {"width": 20}, "differ"), ("vision_cfg", {"width": 10**9}, "width"),
    ],
)  # fmt: skip
def test_other_networks_are_refused_by_the_key(tmp_path, place, changes, named):
    folder = written(tmp_path, **{place: SAID["model_cfg"][place] | changes})
    with pytest.raises(DistillkitError, match=named) as refused:
        Clip(str(folder))
    assert str(tmp_path) in str(refused.value)


def test_weights_of_something_else_are_refused(tmp_path):
    folder = written(tmp_path, {**STATE, "visual.head.weight": torch.zeros(2)})
    with pytest.raises(DistillkitError, match=r"visual\.head\.weight"):
        Clip(str(folder))
    save_file({k: v for k, v in STATE.items() if k != "visual.proj"}, folder / "open_clip_model.safetensors")
    with pytest.raises(DistillkitError, match="visual_projection"):
        Clip(str(folder))
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"open_clip_model\.safetensors"):
        Clip(str(folder))


def test_one_format_is_downloaded(monkeypatch, tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    written(tmp_path)
    listed = ["open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "vocab.json"]
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns, **_: asked.append(allow_patterns) or str(tmp_path),
    )
    for names, weights in [(listed, "open_clip_model.safetensors"),
                           ([*listed, "config.json", "pytorch_model.bin"], "pytorch_model.bin")]:  # fmt: skip
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name, revision=None, n=names: n)
        Clip("hf:org/clip")
        got = filter_repo_objects(names, allow_patterns=asked.pop())
        assert {name for name in got if name.endswith((".bin", ".safetensors"))} == {weights}
