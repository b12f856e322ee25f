"""`teachers train`: the same engine, so the same interruptions; and what it makes is a teacher."""

import io
import json
import re
import signal
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from distillkit import Condition, load_teacher
from tests.conftest import HANG

SHORT = ["--set", "training.duration=1280", "--set", "training.batch=32", "--set", "training.log_every=32",
         "--set", "training.checkpoint_every=160", "--set", "training.sample_every=640",
         "--set", "training.evaluate_every=640", "--evaluation-samples", "20", "--evaluate-samples", "20",
         "--channels-last", "off"]  # fmt: skip


def test_training_is_interruptible_and_makes_a_teacher_that_can_be_distilled(inside, start, tmp_path):
    whole = inside("teachers", "train", "digits", *SHORT, "--output-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    assert "FD[digits8cnn/fc64]" in whole.stdout and "--teacher whole/teacher" in whole.stdout
    process = start("teachers", "train", "digits", *SHORT, "--output-dir", "parts")
    log, deadline = tmp_path / "parts" / "metrics.jsonl", time.monotonic() + HANG
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) == 143
    assert "distillkit teachers train digits --resume parts" in process.stdout.read()
    resumed = inside("teachers", "train", "digits", "--resume", "parts")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (load_file(tmp_path / name / "teacher" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a | b)
    losses = [json.loads(x)["loss/denoising_score_matching"] for x in log.read_text().splitlines() if "loss/" in x]
    assert losses[-1] < losses[0]
    # Its teacher.json names it digits, so the preset for digits applies to the folder too.
    plan = inside("run", "dmd", "--teacher", "parts/teacher", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "preset 'digits'" in " ".join(plan.stdout.replace("│", " ").split())
    # And its data come with it.
    assert load_teacher(str(tmp_path / "parts" / "teacher")).images is not None


@pytest.fixture
def pictures(tmp_path):
    """Forty coloured 8 x 8 pictures of two classes in a zip file of EDM's form."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        labels = []
        for k in range(40):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
            archive.writestr(f"{k:03d}.png", out.getvalue())
            labels.append([f"{k:03d}.png", k % 2])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return "pictures.zip"


NETWORK = ["--model-channels", "8", "--channel-mult", "1,1", "--num-blocks", "1", "--attn-resolutions", "4"]
FEW = ["--duration", "128", "--batch", "16", "--warmup", "0", "--log-every", "32", "--sample-every", "64",
       "--checkpoint-every", "32", "--quiet"]  # fmt: skip


@pytest.mark.parametrize("arch", ["ddpmpp", "ncsnpp", "adm", "edm2"])
def test_a_teacher_is_trained_on_anybodys_images_and_distilled(inside, tmp_path, pictures, arch):
    done = inside("teachers", "train", "mine", "--data", pictures, "--arch", arch, *NETWORK, *FEW, "--output-dir", "t",
                  "--licence", "CC0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    teacher = load_teacher(str(tmp_path / "t" / "teacher"))
    spec = teacher.spec
    assert (spec.name, spec.shape, teacher.conditioner.count, spec.licence) == ("mine", (3, 8, 8), 2, "CC0")
    dropout = 0.0 if arch == "edm2" else 0.1
    assert "pictures.zip, 40 images" in spec.source and spec.network["arguments"]["network"]["dropout"] == dropout
    # EDM2's labels are not dropped, and another network guides it.
    assert teacher.conditioner.has_null == (arch != "edm2")
    guidance = 2.0 if teacher.conditioner.has_null else 1.0
    labels = Condition(labels=torch.tensor([0, 1]))
    assert teacher(torch.randn(2, 3, 8, 8), torch.ones(2), labels, guidance=guidance).isfinite().all()
    assert (tmp_path / "t" / "samples" / "step-000000008.png").exists()
    run = inside("run", "dmd", "--teacher", "t/teacher", "--distance", "l2", "--duration", "32", "--batch", "8",
                 "--pairs-count", "8", "--pairs-steps", "3", "--output-dir", "r", "--quiet")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "CC0" in (tmp_path / "r" / "student" / "README.md").read_text()


def test_dropout_is_on_while_training_and_off_in_what_is_written(inside, tmp_path, pictures):
    arguments = ["teachers", "train", "--data", pictures, *NETWORK, *FEW, "--unconditional"]
    losses = []
    for rate in ("0", "0.5"):
        done = inside(*arguments, "--dropout", rate, "--output-dir", f"t{rate}")
        assert done.returncode == 0, done.stderr
        log = (tmp_path / f"t{rate}" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(x)["loss/denoising_score_matching"] for x in log if "loss/" in x])
    assert losses[0][-1] != losses[1][-1]
    teacher = load_teacher(str(tmp_path / "t0.5" / "teacher"))
    assert teacher.conditioner.count == 0 and teacher.spec.name == "pictures" and not teacher.denoiser.training
    x, sigma = torch.randn(2, 3, 8, 8), torch.ones(2)
    assert torch.equal(teacher(x, sigma, Condition()), teacher(x, sigma, Condition()))


def test_training_on_images_resumes_to_the_same_bits(inside, tmp_path, pictures):
    arguments = ["teachers", "train", "--data", pictures, *NETWORK, *FEW, "--data-flip", "--dropout", "0.2"]
    assert inside(*arguments, "--output-dir", "whole").returncode == 0
    assert inside(*arguments, "--duration", "128", "--output-dir", "parts").returncode == 0
    # As if it had been stopped half-way: later checkpoints, log entries and the teacher are gone.
    checkpoints = sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))
    for path in [*checkpoints[-1].iterdir(), *(tmp_path / "parts" / "teacher").iterdir()]:
        path.unlink()
    checkpoints[-1].rmdir()
    resumed = inside("teachers", "train", "--resume", "parts", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (load_file(tmp_path / name / "teacher" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a | b)


def test_the_plan_of_a_training_writes_nothing(inside, tmp_path, pictures):
    done = inside("teachers", "train", "--data", pictures, *NETWORK, "--batch", "16", "--dry-run")
    assert done.returncode == 0, done.stderr
    for fragment in (
        "40 images 3 x 8 x 8, conditions: 2 classes",
        "SongUNet",
        "3 forward-equivalents an image (student 3)",
    ):
        assert fragment in done.stdout
    assert re.search(r"\d days|\d:\d\d", done.stdout), "how long it takes"
    assert [p.name for p in tmp_path.iterdir()] == [pictures]
    wrong = inside("teachers", "train", "--data", pictures, "--channel-mult", "1,1,1,1,1", "--dry-run")
    assert wrong.returncode == 2 and "multiple of 16" in wrong.stderr


def test_the_plan_for_a_teacher_that_is_not_here_downloads_nothing(inside, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))

    def trial(*rest, **named):
        # With 56 million parameters it takes long; that it is asked for is enough here.
        raise RuntimeError("skip")

    monkeypatch.setattr("distillkit.jobs.plan.try_training", trial)
    done = inside("run", "dmd", "--teacher", "edm-cifar10", "--distance", "l2", "--dry-run")
    assert done.returncode == 0, done.stderr
    for fragment in ("to be downloaded: 223 MB, CC BY-NC-SA 4.0", "55,735,299 parameters", "100,000 noise-image pairs",
                     "not estimated: skip", "cifar10 conditional"):  # fmt: skip
        assert fragment in " ".join(done.stdout.replace("\u2502", " ").split())
    assert not (tmp_path / "cache").exists()


def test_catalogue_and_facts_of_a_teacher_need_no_download(inside, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    listed = inside("teachers")
    assert listed.returncode == 0 and "edm-imagenet64" in listed.stdout and "to fetch: 1.2 GB" in listed.stdout
    shown = inside("teachers", "show", "edm-imagenet-64x64-cond-adm")
    assert shown.returncode == 0, shown.stderr
    for fragment in ("295,899,267 parameters", "CC BY-NC-SA 4.0", "FID 2.22 at NFE 79", "imagenet-64x64.npz",
                     "40 steps, NFE 79", "distillkit teachers fetch edm-imagenet64"):  # fmt: skip
        assert fragment in shown.stdout


def test_convert_makes_a_folder_and_keeps_what_is_there(inside, tmp_path):
    digits = load_teacher("digits")
    torch.save(digits.denoiser.state_dict(), tmp_path / "w.pt")
    untold = inside("teachers", "convert", "w.pt")
    assert untold.returncode == 2 and "--like" in untold.stderr and not (tmp_path / "w").exists()
    done = inside("teachers", "convert", "w.pt", "--like", "digits", "--licence", "CC0", "--output-dir", "mine")
    assert done.returncode == 0, done.stderr
    assert "next: distillkit run METHOD --teacher mine" in done.stdout
    assert load_teacher(str(tmp_path / "mine")).spec.licence == "CC0"
    again = inside("teachers", "convert", "w.pt", "--like", "mine", "--output-dir", "mine")
    assert again.returncode == 2 and "mine is there already" in again.stderr
