"""A resumed run goes on with what it was begun with, and says how to go on whenever it ends early."""

import errno
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import yaml
from PIL import Image

import distillkit
from distillkit.errors import Interrupted, UsageError
from distillkit.files import WriteError
from distillkit.jobs import distil as distil_module
from distillkit.runs.config import RunConfig
from distillkit.runs.folder import CONFIG, INPUTS, RunFolder
from distillkit.testing.teachers import conditional

FEW = {"distance": "l2", "duration": 32, "batch": 16, "pairs_count": 32, "lr": 1e-3, "protocol": "none"}


@pytest.fixture
def teacher(tiny_teacher_folder, tmp_path):
    return shutil.copytree(tiny_teacher_folder, tmp_path / "teacher")


def begin(teacher, folder, **options):
    return distillkit.distil("dmd", teacher, output_dir=folder, quiet=True, **{**FEW, **options})


def resume(folder, **options):
    return distillkit.distil("dmd", resume=folder, quiet=True, **options)


def test_another_teacher_under_the_same_name_is_refused(teacher, tmp_path):
    begin(teacher, tmp_path / "run")
    spec = json.loads((teacher / "teacher.json").read_text())
    before, spec["solver_steps"] = spec["weights_sha256"], 5
    (teacher / "teacher.json").write_text(json.dumps(spec))
    resume(tmp_path / "run", duration=48)
    from safetensors.torch import load_file, save_file

    weights = load_file(teacher / "model.safetensors")
    next(iter(weights.values())).add_(1.0)
    save_file(weights, teacher / "model.safetensors")
    from distillkit.files import sha256

    spec["weights_sha256"] = sha256(teacher / "model.safetensors")
    (teacher / "teacher.json").write_text(json.dumps(spec))
    with pytest.raises(UsageError) as refused:
        resume(tmp_path / "run", duration=64)
    assert before[:16] in str(refused.value) and spec["weights_sha256"][:16] in str(refused.value)


def test_inputs_that_are_not_known_are_recorded_with_a_word(teacher, tmp_path):
    begin(teacher, tmp_path / "run")
    kept = (tmp_path / "run" / INPUTS).read_bytes()
    (tmp_path / "run" / INPUTS).unlink()
    resume(tmp_path / "run", duration=48)
    assert (tmp_path / "run" / INPUTS).read_bytes() == kept
    # What is said before the identity is for people.
    (tmp_path / "run" / INPUTS).write_text(json.dumps({k: f"x {v.split()[-1]}" for k, v in json.loads(kept).items()}))
    resume(tmp_path / "run", duration=56)
    (tmp_path / "run" / INPUTS).write_text("[1]")
    with pytest.raises(distillkit.DistillkitError, match=INPUTS):
        resume(tmp_path / "run", duration=64)


def test_what_a_source_reads_is_compared(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.data.pairs.PairSource.fingerprint", "a" * 64, raising=False)
    begin(teacher, tmp_path / "run")
    monkeypatch.setattr("distillkit.data.pairs.PairSource.fingerprint", "b" * 64, raising=False)
    with pytest.raises(UsageError, match=r"pairs: fingerprint a{16} .* fingerprint b{16}"):
        resume(tmp_path / "run", duration=48)


def test_other_images_under_the_same_path_are_refused(inside, tmp_path):
    def pictures(folder, count):
        folder.mkdir(exist_ok=True)
        for k in range(count):
            pixels = np.random.default_rng(k).integers(0, 255, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")

    pictures(tmp_path / "data", 4)
    small = ["--data", "data", "--duration", "8", "--batch", "4", "--set", "network.model_channels=8",
             "--protocol", "none", "-o", "run", "-q"]  # fmt: skip
    done = inside("teachers", "train", *small)
    assert done.returncode == 0, done.stderr
    before = json.loads((tmp_path / "run" / INPUTS).read_text())["data"]
    pictures(tmp_path / "data", 5)
    done = inside("teachers", "train", "--resume", "run", "--duration", "16", "-q")
    assert done.returncode == 2 and before in done.stderr and "data: fingerprint" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_signal_while_the_figures_are_measured_is_honoured_and_nothing_is_trained_again(
    teacher, tmp_path, monkeypatch
):
    def row(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    with monkeypatch.context() as patch:
        patch.setattr(distil_module.Distillation, "_teacher_row", row)
        with pytest.raises(Interrupted) as stopped:
            begin(teacher, tmp_path / "run")
    assert stopped.value.exit_code == 143 and f"--resume {tmp_path / 'run'}" in str(stopped.value)
    monkeypatch.setattr("distillkit.engine.trainer.Trainer.train_step", lambda self: pytest.fail("trained again"))
    assert resume(tmp_path / "run").finished


def test_a_full_disk_is_one_message_with_the_command_that_continues(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.files.RETRY_SECONDS", ())
    real, left = os.fsync, [25]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteError) as failed:
            begin(teacher, tmp_path / "run")
    assert "No space left" in str(failed.value) and f"--resume {tmp_path / 'run'}" in str(failed.value)
    assert resume(tmp_path / "run").finished


def test_pairs_are_kept_in_the_run_where_the_cache_cannot_be_written(teacher, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "file" / "cache"))
    run = begin(teacher, tmp_path / "run", protocol="digits8", evaluation_samples=30, evaluate_samples=30)
    assert run.record is not None and list((tmp_path / "run" / "pairs").rglob("shard-*"))


def test_a_run_of_before_a_setting_was_there_resumes_where_that_is_off(tmp_path):
    folder = RunFolder(tmp_path / "run", "distillkit run dmd2")
    config = RunConfig(method="dmd2", sources={"data": {"path": "photos", "grey": False}})
    folder.begin(config)
    older = config.model_dump(mode="json")
    del older["sources"]["data"]["grey"], older["training"]["channels_last"]
    (folder / CONFIG).write_text(yaml.safe_dump(older))
    assert folder.check_same(config) is None
    grey = config.model_copy(update={"sources": {"data": {"path": "photos", "grey": True}}})
    with pytest.raises(UsageError, match=r"sources\.data\.grey"):
        folder.check_same(grey)


def test_a_training_in_stages_is_not_made_longer(tmp_path):
    """Its checkpoints would lie in other stages: a student of one step would go on as one of two."""
    few = {"device": "cpu", "quiet": True, "batch": 8, "protocol": "none"}
    made = distillkit.distil(
        "progressive", conditional(), output_dir=tmp_path / "run", start_steps=2, duration=32, **few
    )
    kept = json.loads((made.folder / "record.json").read_text())
    with pytest.raises(UsageError, match=r"trains in 2 stages.*cannot be made longer.*--student"):
        distillkit.distil("progressive", conditional(), resume=made.folder, duration=64, device="cpu", quiet=True)
    assert json.loads((made.folder / "record.json").read_text()) == kept
    one = {**few, "duration": 16, "start_steps": 1, "output_dir": tmp_path / "one"}
    made = distillkit.distil("progressive", conditional(), **one)
    again = distillkit.distil("progressive", conditional(), resume=made.folder, duration=32, device="cpu", quiet=True)
    assert again.student.description.images_seen == 32


def test_a_resumed_run_took_as_long_as_it_took_to_prepare_it_first(teacher, tmp_path, monkeypatch):
    prepare, slow = distil_module.encoded, [0.5, 0.0]

    def encoded(*arguments):
        time.sleep(slow.pop(0))
        return prepare(*arguments)

    monkeypatch.setattr(distil_module, "encoded", encoded)
    folder = begin(teacher, tmp_path / "run", checkpoint_every=16, keep_checkpoints=5).folder
    shutil.rmtree(folder / "checkpoints" / "step-000000002")
    (folder / "record.json").unlink()
    assert resume(folder).summary["seconds"] > 0.5
