"""The main job through the real entry point: what it makes, and that it can be interrupted at any time."""

import json
import random
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from distillkit import load_student


def start_run(start, small_run, folder, *more):
    return start(*small_run, "--output-dir", folder, *more)


def wait_for(process, condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def final(folder):
    return load_file(folder / "student" / "model.safetensors")


def assert_same(a, b):
    assert all(torch.equal(a[name], b[name]) for name in a | b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_teacher_folder):
    """One uninterrupted run, shared by the tests that only look at it."""
    import subprocess

    from tests.conftest import command, environment

    folder = tmp_path_factory.mktemp("finished") / "run"
    arguments = ["run", "dmd", "--teacher", tiny_teacher_folder, "--distance", "l2", "--duration", "1600", "--batch",
                 "16", "--pairs-count", "64", "--log-every", "32", "--checkpoint-every", "64", "--sample-every", "800",
                 "--evaluate-every", "800", "--evaluation-samples", "100", "--lr", "1e-3"]  # fmt: skip
    done = subprocess.run(
        command(*arguments, "--output-dir", folder), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, [str(a) for a in arguments]


def test_the_run_folder_is_all_there_is_to_know(finished):
    folder, stdout, _ = finished
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {
        "config.yaml", "environment.json", "metrics.jsonl", "record.json", "checkpoints/latest",
        "student/model.safetensors", "student/student.json", "student/README.md", "student/samples.png",
        "samples/step-000000000.png", "samples/step-000000100.png", "samples/README.txt",
    } <= present  # fmt: skip
    assert not [name for name in present if name.endswith((".pt", ".pth", ".pkl", ".bin", ".tmp"))]
    record = json.loads((folder / "record.json").read_text())
    assert [row["nfe"] for row in record["rows"]] == [7.0, 1.0, 1.0]
    assert record["protocol_id"].startswith("p1-")
    assert set(record["health"]) == {"kl_gradient_rms", "fake_to_real_error", "std_to_teacher", "mean_to_teacher"}
    images = 1600
    assert record["cost_forward_equivalents"] == {
        "pairs": 64 * 7, "student": images * 6, "teacher": images, "fake_score": images * 4,
    }  # fmt: skip
    assert "FD[digits8cnn/fc64]" in stdout and "FID" not in stdout.replace("Not Inception FID", "")
    for expected in (
        "teacher, 4 Heun steps",
        "student, untrained",
        "student, distilled",
        f"distillkit sample {folder}",
    ):
        assert expected in stdout
    assert "\x1b[" not in stdout


def test_saved_configuration_runs_again_to_the_same_result(finished, cli, tmp_path):
    folder, _, _ = finished
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["duration"] == 1600
    done = cli("run", "dmd", "--config", folder / "config.yaml", "--output-dir", tmp_path / "again", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") < 15
    assert_same(final(folder), final(tmp_path / "again"))


def test_sample_makes_pictures(finished, cli, tmp_path):
    folder, _, _ = finished
    for output in ("grid.png", "many"):
        done = cli("sample", folder, "--num", "5", "--seed", "1", "--output", output, "--labels", "3,7")
        assert done.returncode == 0, done.stderr
        assert "5 samples, 1 network evaluation" in done.stdout
    from PIL import Image

    assert Image.open(tmp_path / "grid.png").size[0] > 100
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    assert Image.open(tmp_path / "many" / "000000.png").size == (8, 8)
    assert load_student(folder)(2, seed=1).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_resumed_run_equals_the_uninterrupted_one(finished, start, cli, tmp_path, number, code):
    whole, _, arguments = finished
    folder = tmp_path / "run"
    process = start(*arguments, "--output-dir", folder)
    steps = random.randint(2, 30)
    log = folder / "metrics.jsonl"
    wait_for(process, lambda: log.exists() and log.read_text().count("\n") >= steps)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    output = process.stdout.read()
    assert f"distillkit run dmd --resume {folder}" in output and "saved at step" in output
    assert "Traceback" not in output
    done = cli("run", "dmd", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert_same(final(whole), final(folder))
    steps_logged = [json.loads(line)["step"] for line in log.read_text().splitlines() if "health" in line]
    assert steps_logged == sorted(set(steps_logged)), "no step is logged twice"


def test_kill_dash_nine_at_a_random_moment_then_resume_equals_uninterrupted(finished, start, cli, tmp_path):
    whole, _, arguments = finished
    folder = tmp_path / "run"
    process = start(*arguments, "--output-dir", folder)
    wait_for(process, (folder / "checkpoints" / "latest").exists)
    time.sleep(random.random())
    process.kill()
    process.wait()
    if (folder / "record.json").exists():
        pytest.skip("the run ended before it was killed")
    done = cli("run", "dmd", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert_same(final(whole), final(folder))
    assert not list((folder / "checkpoints").glob(".step-*"))


def test_second_signal_stops_at_once_and_leaves_the_checkpoint(start, small_run, tmp_path):
    folder = tmp_path / "run"
    arguments = [*small_run, "--output-dir", str(folder), "--duration", "10M", "--checkpoint-every", "64"]
    process = start(*arguments, "--evaluation-samples", "100000", "--evaluate-every", "320")
    # During the long evaluation the first signal waits for a safe place; the second does not.
    log = folder / "metrics.jsonl"
    wait_for(process, lambda: log.exists() and log.read_text().count("\n") >= 9)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    from distillkit.engine.checkpoint import Checkpoints

    assert Checkpoints(folder / "checkpoints").load().step > 0


def test_stop_while_making_pairs_keeps_them_and_resume_goes_on(finished, start, cli, tmp_path):
    _, _, arguments = finished
    folder = tmp_path / "run"
    cache = {"DISTILLKIT_CACHE": str(tmp_path / "cache")}
    many = [*arguments, "--output-dir", str(folder), "--pairs-count", "4096", "--pairs-steps", "20"]
    process = start(*many, env=cache)
    wait_for(process, lambda: len(list((tmp_path / "cache").rglob("shard-*"))) >= 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    made = len(list((tmp_path / "cache").rglob("shard-*")))
    assert 2 <= made < 16
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    done = cli("run", "dmd", "--resume", folder, env=cache)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache").rglob("shard-*"))) == 16


def test_resume_from_a_torn_newest_checkpoint_warns_and_goes_on(finished, start, cli, tmp_path):
    whole, _, arguments = finished
    folder = tmp_path / "run"
    process = start(*arguments, "--output-dir", folder)
    wait_for(process, lambda: len(list((folder / "checkpoints").glob("step-*"))) >= 2)
    process.kill()
    process.wait()
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    weights = newest / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = cli("run", "dmd", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {newest.name}" in done.stderr and "going on from step-" in done.stderr
    assert_same(final(whole), final(folder))


def test_tensorboard_on_request(cli, small_run, tmp_path):
    done = cli(*small_run, "--output-dir", "run", "--report-to", "tensorboard")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_there_is_a_warning(cli, small_run, tmp_path):
    done = cli(*small_run, "--output-dir", "run", "--report-to", "aim")
    assert done.returncode in (0, 2)
    assert "aim" in done.stderr
    assert "Traceback" not in done.stderr
