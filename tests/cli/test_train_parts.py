"""`teachers train --part`: autoencoder and text encoder of a pipeline, alone and one after the other."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from distillkit import load_teacher
from distillkit.progress import Quiet
from tests.models import pipelines

FEW = (
    "--batch", "8", "--warmup", "0", "--lr", "3e-3", "--channels-last", "off", "--quiet", "--checkpoint-every", "64",
    "--evaluate-every", "64", "--sample-every", "1000", "--log-every", "64",
)  # fmt: skip
VAE, TEXT = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
TOKENS = "embeddings.token_embedding.weight"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Figures of a few pictures say as much here."""
    monkeypatch.setattr("distillkit.jobs.part.HELD", 48)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("parts") / "tiny", text={"projection_dim": 16})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A dozen pictures, 16 x 16, dark or light, with texts that say which."""
    folder, rng = tmp_path_factory.mktemp("pictures") / "p", np.random.default_rng(0)
    folder.mkdir()
    for k in range(12):
        level = (20, 220)[k % 2] + rng.integers(0, 20, (16, 16, 3))
        Image.fromarray(level.astype(np.uint8)).save(folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text(f"{('dark', 'light')[k % 2]} {'abcdef'[k // 2]}\n")
    return folder


def without_end(folder, *also):
    """The run as it was before its last checkpoint, and without what was made in the end."""
    shutil.rmtree(sorted((folder / "checkpoints").glob("step-*"))[-1])
    for name in ("record.json", *also):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_an_autoencoder_is_trained_measured_scaled_and_resumed(inside, pipeline, pictures, tmp_path):
    done = inside("teachers", "train", "mine", "--part", "autoencoder", "--like", pipeline, "--data", pictures,
                  "--duration", "160", *FEW, "-o", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    made, record = tmp_path / "run" / "pipeline", json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["after"]["PSNR"] > record["before"]["PSNR"] + 1 and record["held"] == 48
    assert f"next: distillkit teachers train mine --like run/pipeline --data {pictures}" in done.stdout
    assert (tmp_path / "run" / "samples" / "step-000000020.png").is_file()

    from diffusers import AutoencoderKL

    plain = AutoencoderKL.from_pretrained(made / "vae")
    x = torch.stack(
        [torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1) for p in sorted(pictures.glob("*.png"))]
    )
    codes = plain.encode(x.float() / 127.5 - 1).latent_dist.sample(torch.Generator().manual_seed(0))
    assert (codes * plain.config.scaling_factor).std().item() == pytest.approx(1, abs=0.1)
    assert plain.config.scaling_factor != 0.18215
    # The network saw other latents: it is described, and has to be trained anew. The text encoder stays.
    assert not (made / UNET).exists() and (made / "unet" / "config.json").is_file()
    assert (made / TEXT).read_bytes() == (pipeline / TEXT).read_bytes()

    other = inside("teachers", "train", "--resume", "run", "--part", "all")
    assert other.returncode == 2 and "is of a training of one part, autoencoder, not of all" in other.stderr
    shutil.copytree(tmp_path / "run", tmp_path / "parts")
    without_end(tmp_path / "parts", "pipeline")
    resumed = inside("teachers", "train", "--resume", "parts", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    first, again = load_file(made / VAE), load_file(tmp_path / "parts" / "pipeline" / VAE)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("part", ["autoencoder", "text-encoder"])
def test_pictures_of_a_stream_are_held_as_others_are(part, inside, pipeline, pictures, tmp_path):
    """Before: more pictures are held than a batch has places, which a stream refused as a fault of the program."""
    for k in range(2):
        with tarfile.open(tmp_path / f"p-{k}.tar", "w") as tar:
            for number in range(6 * k, 6 * k + 6):
                for kind in ("png", "txt"):
                    tar.add(pictures / f"{number:02d}.{kind}", f"{number:02d}.{kind}")
    done = inside("teachers", "train", "mine", "--part", part, "--like", pipeline, "--data", tmp_path / "p-{0..1}.tar",
                  "--duration", "16", *FEW, "-o", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "record.json").read_text())["held"] == 48


def test_all_parts_are_trained_in_turn_and_go_on_where_they_were(inside, pipeline, pictures, tmp_path):
    done = inside("teachers", "train", "mine", "--part", "all", "--like", pipeline, "--data", pictures,
                  "--duration", "320", *FEW, "--protocol", "none", "-o", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run, made = tmp_path / "run", tmp_path / "run" / "network" / "teacher"
    # Each part is on top of the one before it.
    assert (made / VAE).read_bytes() == (run / "autoencoder" / "pipeline" / VAE).read_bytes()
    assert (made / TEXT).read_bytes() == (run / "text-encoder" / "pipeline" / TEXT).read_bytes()
    learnt, before = ({k.removeprefix("text_model."): v for k, v in load_file(folder / TEXT).items()}
                      for folder in (made, pipeline))  # fmt: skip
    assert learnt.keys() == before.keys() and not torch.equal(learnt[TOKENS], before[TOKENS])

    from diffusers import StableDiffusionPipeline

    plain = StableDiffusionPipeline.from_pretrained(made)
    plain.set_progress_bar_config(disable=True)
    assert plain("dark a", num_inference_steps=1, output_type="pt").images.shape == (1, 3, 16, 16)
    # It brings the sentences that it was trained with.
    teacher = load_teacher(str(made), Quiet())
    assert not teacher.conditioner.lacks and set(teacher.conditioner.texts) == {
        f"{word} {letter}" for word in ("dark", "light") for letter in "abcdef"
    }
    assert "--teacher run/network/teacher  " in done.stdout

    shutil.copytree(run, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "network")
    for part in ("autoencoder", "text-encoder"):
        assert json.loads((run / part / "record.json").read_text())["config"]["training"]["batch"] == 8
    without_end(tmp_path / "parts" / "text-encoder", "pipeline")
    resumed = inside("teachers", "train", "mine", "--resume", "parts")
    assert resumed.returncode == 0 and "trained before: autoencoder" in resumed.stdout, resumed.stderr
    first, again = (load_file(tmp_path / name / "network" / "teacher" / UNET) for name in ("run", "parts"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = inside("teachers", "train", "mine", "--resume", "parts", "--lr", "1")
    assert changed.returncode == 2 and "leave out what sets training" in changed.stderr


def test_a_plan_says_what_a_part_would_take_and_writes_nothing(inside, pipeline, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.jobs.trial.ENOUGH_SECONDS", 0.01)
    done = inside("teachers", "train", "mine", "--part", "all", "--like", pipeline, "--data", pictures, "--dry-run",
                  "--batch", "8", "--batch-per-device", "2", "--duration", "480")  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.replace("│", " ").split())
    for part in ("autoencoder of", "text-encoder of", "network distillkit:UNet2DConditionModel"):
        assert part in text
    assert "no network is evaluated" in text and text.count("images/s") == 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("digits", "--part", "autoencoder"), "--part autoencoder of which pipeline"),
        (("--part", "all", "digits"), "digits has no part but its network"),
        (("shapes", "--data-resolution", "30"), "--data-resolution: for images of your own, and there is no --data"),
        (("--part", "autoencoder", "--data", "{data}"), "--part autoencoder of which pipeline"),
        (("--part", "autoencoder", "--data", "{data}", "--like", "digits"), "digits is no pipeline"),
        (("--part", "autoencoder", "--like", "{like}", "--data", "{data}", "--noise-mean", "1"), "--noise-mean:"),
        (("--part", "network", "--like", "{like}", "--data", "{data}", "--kl-weight", "1"), "--kl-weight:"),
        (
            ("--part", "autoencoder", "--like", "{like}", "--data", "{data}", "--data-resolution", "15"),
            "multiples of 2",
        ),
        (("--part", "autoencoder", "--like", "{like}", "--data", "{data}", "--compile"), "--compile"),
        (
            ("--part", "text-encoder", "--like", "{like}", "--data", "{data}", "--data-resolution", "20"),
            "multiple of 8",
        ),
        (("--part", "text-encoder", "--like", "{like}", "--data", "{data}", "--gradient-checkpointing"), "--gradient-"),
        (("--part", "text-encoder", "--like", "{like}", "--data", "{data}", "--batch", "1"), "a pass of one picture"),
        (
            (
                "--part",
                "text-encoder",
                "--like",
                "{like}",
                "--data",
                "{data}",
                "--batch",
                "3",
                "--batch-per-device",
                "2",
            ),
            "a larger --batch or --batch-per-device",
        ),
        (("shapes", "--like", "{like}", "--protocol", "none"), "(3, 16, 16), and the data of shapes are (3, 32, 32)"),
    ],
)
def test_what_cannot_be_trained_is_one_message(inside, pipeline, pictures, tmp_path, asked, message):
    asked = [word.format(data=pictures, like=pipeline) for word in asked]
    done = inside("teachers", "train", *asked, "--quiet")
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_text_encoder_needs_texts_and_is_one_clip(inside, pipeline, pictures, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(pictures, bare, ignore=shutil.ignore_patterns("*.txt"))
    # Of all parts, before the first of them is trained.
    done = inside("teachers", "train", "--like", pipeline, "--data", bare, *FEW, "--part", "all", "-o", "all")
    assert done.returncode == 2 and "no captions and a text encoder learns from them" in done.stderr
    assert not (tmp_path / "all").exists()
    options = ("--quiet", "--part", "text-encoder")
    done = inside("teachers", "train", "--like", pipeline, "--data", bare, *options)
    assert done.returncode == 2 and "no captions and a text encoder learns from them" in done.stderr
    other = pipelines.pixart(tmp_path / "pixart")
    done = inside("teachers", "train", "--like", other, "--data", pictures, *options)
    assert done.returncode == 2 and "not one CLIPTextModel" in done.stderr
