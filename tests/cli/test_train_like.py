"""`teachers train --like PIPELINE`: a latent model of prompts or classes from pictures with texts or labels."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from distillkit import load_teacher
from distillkit.progress import Quiet
from tests.models import pipelines

FEW = ["--duration", "96", "--batch", "16", "--warmup", "0", "--log-every", "32", "--sample-every", "48",
       "--checkpoint-every", "48", "--quiet", "--protocol", "none", "--lr", "1e-3"]  # fmt: skip
NETWORK = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("like") / "tiny")


@pytest.fixture
def captioned(tmp_path):
    """A dozen pictures, 16 x 16, each with a text beside it."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for k in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{k:02d}.png")
        (tmp_path / "pictures" / f"{k:02d}.txt").write_text(f"{('a', 'no')[k % 2]} cat\n")
    return tmp_path / "pictures"


def test_a_text_model_is_trained_from_pictures_with_texts_and_is_a_pipeline(inside, pipeline, captioned, tmp_path):
    done = inside("teachers", "train", "cats", "--like", pipeline, "--data", captioned, *FEW, "--output-dir", "t")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "t" / "teacher"
    teacher, base = load_teacher(str(made), Quiet()), load_teacher(str(pipeline), Quiet())
    kinds = {p.suffix for p in made.rglob("*") if p.is_file()}
    assert kinds <= {".json", ".txt", ".safetensors"}
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (made / part).read_bytes() == (pipeline / part).read_bytes(), part
    learnt, before = load_file(made / NETWORK), load_file(pipeline / NETWORK)
    assert learnt.keys() == before.keys() and not torch.equal(learnt["conv_in.weight"], before["conv_in.weight"])
    encodings = [each.conditioner.encode(each.conditioner.parse(["a cat"]))["text"] for each in (teacher, base)]
    assert torch.equal(*encodings)
    from diffusers import StableDiffusionPipeline

    plain = StableDiffusionPipeline.from_pretrained(made)
    assert torch.equal(plain.unet.conv_in.weight, learnt["conv_in.weight"])
    losses = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss/denoising_score_matching" in line for line in losses)

    # As if it had been stopped half-way.
    shutil.copytree(tmp_path / "t", tmp_path / "parts")
    shutil.rmtree(sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))[-1])
    shutil.rmtree(tmp_path / "parts" / "teacher")
    resumed = inside("teachers", "train", "--resume", "parts", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    again = load_file(tmp_path / "parts" / "teacher" / NETWORK)
    assert all(torch.equal(learnt[name], again[name]) for name in learnt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.glob("*.txt")], "no captions.*metadata.jsonl"),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "00.png"}'),
            "metadata.jsonl, row 1 does not say which column the captions are",
        ),
        (lambda folder: (folder / "03.txt").write_bytes(b"\xff\xfe"), "03.txt is not UTF-8"),
    ],
)
def test_texts_that_cannot_be_used_are_named(pipeline, captioned, change, message):
    from distillkit import DistillkitError
    from distillkit.jobs.teacher_config import resolve_teacher
    from distillkit.jobs.train_teacher import new_teacher

    change(captioned)
    config = resolve_teacher({"like": str(pipeline), "data": {"path": str(captioned)}})
    with pytest.raises(DistillkitError, match=message):
        new_teacher(config, torch.device("cpu"))


def test_prompts_are_dropped_and_texts_reach_the_loss(pipeline, captioned):
    from distillkit import SampleRNG, Step
    from distillkit.contracts.source import Images
    from distillkit.jobs.teacher_config import resolve_teacher
    from distillkit.jobs.teacher_recipe import teacher_recipe
    from distillkit.jobs.train_teacher import new_teacher

    lines = [{"file_name": f"{k:02d}.png", "text": f"cat {k}"} for k in range(12)]
    (captioned / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = resolve_teacher({"like": str(pipeline), "data": {"path": str(captioned)}, "loss": {"label_dropout": 0.5}})
    teacher, images = new_teacher(config, torch.device("cpu"))
    recipe, seen = teacher_recipe(teacher, config.loss), []
    recipe.student.denoiser.register_forward_hook(lambda network, given, out: seen.append(given))
    step = Step(
        index=0, indices=range(64), student=recipe.student, conditioner=teacher.conditioner, rng=SampleRNG(0),
        device=torch.device("cpu"), needs=recipe.needs, sources={Images: images},
    )  # fmt: skip
    recipe.objectives[0](step)
    [(_, t, condition)] = seen
    null = teacher.conditioner.null(condition)["text"][0]
    dropped = [bool(torch.equal(row, null)) for row in condition["text"]]
    assert 20 < sum(dropped) < 44 and set(t.tolist()) <= set(range(1000)) and t.min() < 200 and t.max() > 800
    texts = torch.stack(
        [teacher.conditioner.encode(teacher.conditioner.parse([f"cat {k}"]))["text"][0] for k in range(12)]
    )
    kept = [row for row, gone in zip(condition["text"], dropped, strict=True) if not gone]
    assert all((texts - row).abs().flatten(1).amax(1).min() < 1e-5 for row in kept)


def test_options_of_another_network_are_refused(inside, pipeline, captioned):
    done = inside("teachers", "train", "--like", pipeline, "--data", captioned, "--model-channels", "8")
    assert done.returncode == 2 and "--like" in done.stderr
