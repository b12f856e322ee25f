"""A plugin's family of pipelines: its own network and text encoder beside a VAE and a scheduler of diffusers."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

from distillkit import DistillkitError, UsageError, distil, load_student, load_teacher
from tests.models import pipelines

FAMILY = '''
import torch
from torch import nn

from distillkit import Condition, Described, PipelineParts, Prompts, TextEncoder, UsageError, hookimpl
from distillkit.diffusion import PredictionDenoiser, schedule_of

DISTILLKIT_API = 2


class Words(TextEncoder):
    """`text` (B, W): the mean of the words' vectors, which lie in the pipeline's folder `words`."""

    parts: PipelineParts

    def encode(self, texts):
        known = self.parts.configuration("words")["known"]
        table = self.parts.weights("words")["table"]
        rows = [[table[known.index(word)] for word in text.split() if word in known] for text in texts]
        return Condition(text=torch.stack([torch.stack([torch.zeros(table.shape[1]), *row]).mean(0) for row in rows]))

    def hashed(self):
        return self.model_copy(update={"parts": self.parts.hashed("words")})


class Net(nn.Module):
    def __init__(self, channels, width, text):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.bottleneck, self.text, self.level = nn.SiLU(), nn.Linear(text, width), nn.Linear(1, width)

    def forward(self, x, t, condition):
        added = self.text(condition["text"]) + self.level(t[:, None] / 1000)
        return self.last(self.bottleneck(self.first(x) + added[:, :, None, None]))


def net(network, schedule, prediction, sigma_data=1.0):
    arguments = {name: network[name] for name in ("channels", "width", "text")}
    return PredictionDenoiser(Net(**arguments), schedule_of(schedule), prediction, sigma_data=sigma_data)


def describe(pipeline):
    pipeline.require("vae", "words")
    pipeline.refuse({"style": (None, "plain")})
    size = pipeline.config["size"]
    return Described(
        shape=(pipeline.config["channels"], size, size),
        network={"kind": "word_pictures:WordNet2DModel", "arguments": pipeline.conditioned()},
        prefix="model.",
        conditioner=Prompts(encoder=Words(parts=pipeline.parts)),
        codec=pipeline.autoencoder(),
        solver="ddim",
        solver_steps=3,
    )


@hookimpl
def distillkit_families():
    return {"WordNet2DModel": describe}


@hookimpl
def distillkit_networks():
    return {"WordNet2DModel": net}


@hookimpl
def distillkit_encoders():
    return {"Words": Words}
'''


@pytest.fixture
def folder(tmp_path):
    """A pipeline of that family."""
    pipelines.quiet()
    torch.manual_seed(0)
    place = tmp_path / "pictures"
    pipelines.vae().save_pretrained(place / "vae")
    DDIMScheduler(**pipelines.DDIM).save_pretrained(place / "scheduler")
    network = {"_class_name": "WordNet2DModel", "channels": 4, "width": 8, "text": 5, "size": 4}
    weights = {
        "first.weight": (8, 4, 3, 3), "first.bias": (8,), "last.weight": (4, 8, 3, 3), "last.bias": (4,),
        "text.weight": (8, 5), "text.bias": (8,), "level.weight": (8, 1), "level.bias": (8,),
    }  # fmt: skip
    for name, config, tensors in (
        ("unet", network, {name: 0.2 * torch.randn(shape) for name, shape in weights.items()}),
        ("words", {"known": ["red", "cat"]}, {"table": torch.randn(2, 5)}),
    ):
        (place / name).mkdir()
        (place / name / "config.json").write_text(json.dumps(config))
        save_file(tensors, place / name / "diffusion_pytorch_model.safetensors")
    index = {"unet": ["x", "WordNet2DModel"], "words": ["x", "Words"], "vae": ["diffusers", "AutoencoderKL"]}
    (place / "model_index.json").write_text(json.dumps({"_class_name": "WordPipeline", **index}))
    return place


def test_a_plugins_family_is_loaded_distilled_and_its_student_found_again(install, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"WordNet2DModel; what can be loaded is .*UNet2DConditionModel"):
        load_teacher(str(folder))
    remove = install("word_pictures", FAMILY)
    teacher = load_teacher(str(folder))
    assert teacher.spec.conditioner["encoder"]["kind"] == "word_pictures:Words"
    condition = teacher.conditioner.encode(teacher.conditioner.parse(["red cat", ""]))
    assert not condition["text"][1].any() and condition["text"][0].any()
    latents = teacher.sample(torch.randn(2, 4, 4, 4), condition, guidance=3.0)
    assert teacher.codec.decode(latents).shape == (2, 3, 8, 8)
    (tmp_path / "prompts.txt").write_text("red cat\nred\ncat\n")
    run = distil(
        "kd", teacher=str(folder), prompts=str(tmp_path / "prompts.txt"), duration="8", batch=4, seed=0, quiet=True,
        pairs_count=8, pairs_steps=2, distance="l2", output_dir=tmp_path / "run",
    )  # fmt: skip
    pixels = load_student(run.folder)(2, seed=1)
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == torch.uint8
    remove()
    with pytest.raises(UsageError, match=r"word_pictures.*not installed"):
        load_student(run.folder)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda f: pipelines.change(f / "unet" / "config.json", style="rough"), ["style", "rough", "plain"]),
        (lambda f: pipelines.change(f / "model_index.json", words=...), ["no words", "WordNet2DModel"]),
        (lambda f: pipelines.change(f / "unet" / "config.json", size=...), ["word_pictures 1.2", "size"]),
        (lambda f: (f / "words" / "diffusion_pytorch_model.safetensors").unlink(), ["words has no weights"]),
    ],
)
def test_what_it_refuses_or_fails_at_is_one_message(install, folder, spoil, named):
    install("word_pictures", FAMILY)
    spoil(folder)
    with pytest.raises(DistillkitError) as raised:
        teacher = load_teacher(str(folder))
        teacher.conditioner.encode(torch.tensor([0]))
    assert all(text in str(raised.value) for text in named), raised.value
