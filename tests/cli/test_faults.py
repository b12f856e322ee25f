"""Everything a user can get wrong: one clear message, the right exit code, nothing half-written."""

import errno
import os
import sys
import textwrap
import time

import pytest

from tests.conftest import HANG, environment

NO_RUN = "run-not-made"


@pytest.mark.parametrize(
    ("arguments", "code", "fragments"),
    [
        (["run", "dmdd"], 2, ["unknown method 'dmdd'", "Did you mean 'dmd'?", "distillkit methods"]),
        (["sample", "digits", "--num", "9" * 20], 2, ["--num"]),
        (["sample", "digits", "--nfe", "999999999", "--num", "1"], 2, ["--nfe", "20,000"]),
        (["sample", "digits", "--guidance", "inf"], 2, ["--guidance"]),
        (["evaluate", "digits", "--first-seed", "9" * 20], 2, ["--first-seed"]),
        (["evaluate", "digits", "--nfe", ","], 2, ["--nfe"]),
        (["run", "dmd", "--batch", "9" * 20], 2, ["--batch"]),
        (["run", "dmd", "--pairs-count", "9" * 20], 2, ["--pairs-count"]),
        (["run", "dmd", "--duration", "abc"], 2, ["--duration", "200k"]),
        (["run", "dmd", "--teacher", "./nowhere"], 2, ["./nowhere", "no such file or folder"]),
        (["run", "dmd", "--teacher", "digit"], 2, ["unknown teacher 'digit'", "Did you mean 'digits'?"]),
        (["run", "dmd", "--teacher", "."], 2, ["is not a teacher folder", "teacher.json"]),
        (["run", "dmd", "--outdir", "x"], 2, ["--outdir", "--output-dir"]),
        (["run", "dmd", "--output_dir", "x"], 2, ["--output-dir"]),
        (["run", "dmd", "--train_batch_size", "4"], 2, ["--batch (the total over all devices)"]),
        (["run", "dmd", "--mixed_precision", "bf16"], 2, ["--precision"]),
        (["run", "dmd", "--max_train_steps", "4"], 2, ["--duration"]),
        (["run", "dmd", "--lr", "0"], 2, ["--lr:", "greater than 0", "got 0"]),
        (["run", "dmd", "--lr", "fast"], 2, ["--lr", "valid number"]),
        (["run", "dmd", "--duration", "long"], 2, ["--duration:", "'long'"]),
        (["run", "dmd", "--pairs-count", "0"], 2, ["--pairs-count:", "got 0"]),
        (["run", "dmd", "--distance", "l3"], 2, ["--distance", "l2"]),
        (["run", "dmd", "--set", "training.lrr=1"], 2, ["unknown key", "Did you mean 'lr'?"]),
        (["run", "dmd", "--set", "lr"], 2, ["--set lr", "KEY=VALUE"]),
        (["run", "dmd", "--precision", "fp16", "--device", "cpu"], 2, ["--precision fp16 needs a GPU"]),
        (["run", "dmd", "--device", "cuda"], 2, ["--device cuda"]),
        (["run", "dmd", "--report-to", "carrier-pigeon"], 2, ["carrier-pigeon", "tensorboard"]),
        (["run", "dmd", "--config", "absent.yaml"], 2, ["absent.yaml", "No such file"]),
        (["run", "dmd", "--resume", "absent"], 2, ["nothing to resume", "absent"]),
        (["run", "dmd", "--resume", "."], 2, ["nothing to resume", "config.yaml"]),
        (["run", "absent.py"], 2, ["absent.py", "no such file"]),
        (["run", "kd", "--student", "absent"], 2, ["absent"]),
        (["run", "kd", "--student-levels", "3,2"], 2, ["--student-levels", "one level"]),
        (["run", "kd", "--student-network", "{wideness: 3}"], 2, ["wideness", "model_channels"]),
        (["run", "kd", "--protocol", "digit8"], 2, ["Did you mean 'digits8'?"]),
        (["run", "kd", "--evaluate-samples", "1"], 2, ["--evaluate-samples:", "got '1'"]),
        (["run", "dmd", "--device", "gpu"], 2, ["--device", "gpu"]),
        (["evaluate", "digits", "--device", "gpu"], 2, ["--device gpu", "cuda"]),
        (["teachers", "train", "digits", "--device", "gpu"], 2, ["--device gpu", "cuda"]),
        (["sample", "absent"], 2, ["no student in absent"]),
        (["sample", "."], 2, ["no student in ."]),
        (["methods", "show", "dmdd"], 2, ["Did you mean 'dmd'?"]),
        (["teachers", "show", "digit"], 2, ["Did you mean 'digits'?"]),
        (["teachers", "train", "imagenet"], 2, ["--data FILE.zip"]),
        (["teachers", "train", "--arch", "adm"], 2, ["--data FILE.zip"]),
        (["teachers", "train", "--data", "absent.zip"], 2, ["no images at absent.zip"]),
        (["teachers", "train", "--data", "x", "--arch", "vit"], 2, ["--arch", "ddpmpp"]),
        (["teachers", "train", "--data", "x", "--channel-mult", "1,0"], 2, ["--channel-mult"]),
        (["teachers", "train", "--data", "x", "--set", "network.widths=1"], 2, ["unknown key", "channel_mult"]),
        (["teachers", "train", "--resume", "absent"], 2, ["nothing to resume", "absent"]),
        (["teachers", "fetch", "digits"], 2, ["unknown published teacher", "edm-cifar10-cond"]),
        (["teachers", "fetch", "edm-imagnet64"], 2, ["Did you mean 'edm-imagenet64'?"]),
        (["teachers", "convert", "absent.pkl"], 2, ["absent.pkl is not a file"]),
        (["teachers", "show", "hf:a"], 2, ["hf:ORG/REPO"]),
        (["teachers", "train", "digits", "--set", "training.lr=0"], 2, ["--lr:", "greater than 0"]),
        (["nonsense"], 2, ["nonsense"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and value[0] in
    ("run", "sample", "methods", "teachers", "nonsense") else "",
)  # fmt: skip
def test_message_and_exit_code(inside, tmp_path, arguments, code, fragments):
    if arguments[:2] == ["run", "dmd"] and "--resume" not in arguments:
        arguments = [*arguments, "--output-dir", NO_RUN] if "x" not in arguments else arguments
    done = inside(*arguments)
    assert done.returncode == code, done.stderr
    for fragment in fragments:
        assert fragment in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == [], "nothing was created"


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (b"training:\n  lrr: 1\n", ["bad.yaml:2", "training.lrr", "Did you mean 'lr'?"]),
        (b"seed: 1\ntraining:\n  lr: fast\n", ["bad.yaml:3", "training.lr", "'fast'"]),
        (b"training:\n  lr: 1e-4\n  batch: 0\n", ["bad.yaml:3", "training.batch"]),
        (b"settings:\n  kl_wait: 1\n", ["bad.yaml:2", "Did you mean 'kl_weight'?"]),
        (b"seed: 1\nseed: 2\n", ["bad.yaml:2", "'seed' is given twice"]),
        (b"training:\n\tlr: 1\n", ["bad.yaml:2", "not valid YAML"]),
        (b"training: [1\n", ["bad.yaml", "not valid YAML"]),
        (b"seed: \xff\n", ["bad.yaml", "not UTF-8"]),
        (b"", ["holds no keys"]),
        (b"- 1\n", ["holds no keys"]),
        (b"method: cd\n", ["is for the method 'cd'"]),
        (b"training: 3\n", ["bad.yaml:1", "training"]),
        (b"!!python/object/apply:os.system ['touch canary']\n", ["bad.yaml"]),
        (b"seed: !!python/object/apply:os.system ['touch canary']\n", ["bad.yaml"]),
    ],
)
def test_bad_configuration_names_file_and_line(inside, tmp_path, text, fragments):
    (tmp_path / "bad.yaml").write_bytes(text)
    done = inside("run", "dmd", "--config", "bad.yaml", "--output-dir", NO_RUN)
    assert done.returncode == 2, done.stderr
    for fragment in fragments:
        assert fragment in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.fixture
def patched(warm, tmp_path):
    """Run the command line in a process of its own that executes some code first."""

    def run(code, *arguments):
        (tmp_path / "patched.py").write_text(textwrap.dedent(code) + "from distillkit.cli import main\nmain()\n")
        return warm.run([sys.executable, str(tmp_path / "patched.py"), *arguments], tmp_path, environment(), HANG)

    return run


def test_run_folder_in_use_or_foreign(inside, small_run, tmp_path):
    done = inside(*small_run, "--output-dir", "run")
    assert done.returncode == 0, done.stderr
    again = inside(*small_run, "--output-dir", "run")
    assert again.returncode == 2 and "already holds a run" in again.stderr and "--resume run" in again.stderr
    finished = inside("run", "dmd", "--resume", "run")
    assert finished.returncode == 2 and "is finished" in finished.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    foreign = inside(*small_run, "--output-dir", "full")
    assert foreign.returncode == 2 and "not empty (thesis.tex)" in foreign.stderr
    assert [p.name for p in (tmp_path / "full").iterdir() if not p.name.startswith(".")] == ["thesis.tex"]


def test_resume_refuses_another_recipe_and_lists_the_differences(inside, small_run, start, tmp_path):
    process = start(*small_run, "--output-dir", "run", "--duration", "1M")
    deadline = time.monotonic() + HANG
    while not (tmp_path / "run" / "checkpoints" / "latest").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    busy = inside("run", "dmd", "--resume", "run")
    assert busy.returncode == 2 and f"process {process.pid} on" in busy.stderr
    process.terminate()
    process.wait()
    done = inside("run", "dmd", "--resume", "run", "--lr", "5e-4", "--batch", "8", "--kl-weight", "3")
    assert done.returncode == 2
    for fragment in ("training.lr: 0.001 in the run, 0.0005 asked", "training.batch: 16", "settings.kl_weight"):
        assert fragment in done.stderr


def test_full_disk_is_one_message_and_keeps_what_was_complete(patched, small_run, tmp_path, inside):
    done = patched(
        """
        import errno, os
        real, calls = os.fsync, []
        def fsync(handle):
            calls.append(handle)
            if len(calls) > 40:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)
        os.fsync = fsync
        """,
        *small_run, "--output-dir", "run",
    )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "MiB free" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("*.tmp")) and not list((tmp_path / "run").rglob(".step-*"))
    if (tmp_path / "run" / "checkpoints" / "latest").exists():
        resumed = inside("run", "dmd", "--resume", "run")
        assert resumed.returncode == 0, resumed.stderr


def test_transient_write_errors_are_retried(patched, small_run):
    done = patched(
        """
        import errno, os
        real, left = os.fsync, [3]
        def fsync(handle):
            left[0] -= 1
            if left[0] in (0, 1):
                raise OSError(errno.EIO, "Input/output error")
            real(handle)
        os.fsync = fsync
        """,
        *small_run, "--output-dir", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "trying again" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize(
    "env",
    [
        {"TERM": "dumb"}, {"COLUMNS": "40"}, {"NO_COLOR": "1"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"},
    ],
    ids=str,
)  # fmt: skip
def test_odd_terminals_locales_and_homes(cli, small_run, env):
    done = cli(*small_run, "--output-dir", "run", env=env)
    assert done.returncode == 0, done.stderr
    assert "student, distilled" in done.stdout.replace("\n", " ") or env.get("COLUMNS") == "40"
    assert "\x1b[" not in done.stdout


def test_a_run_goes_on_without_a_cache_that_cannot_be_written(cli, small_run):
    done = cli(*small_run, "--output-dir", "run", env={"DISTILLKIT_CACHE": "/proc/nowhere/cache"})
    assert done.returncode == 0, done.stderr
    assert "/proc/nowhere" in done.stderr and "/proc/nowhere" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "No space left on device")])
def test_failures_of_the_system_are_one_message(inside, monkeypatch, error):
    def fail(**options):
        raise error

    monkeypatch.setattr("distillkit.cli.app", fail)
    done = inside("methods")
    assert done.returncode == 1 and len(done.stderr.splitlines()) <= 2 and "fault of" not in done.stderr
    assert ("memory" if isinstance(error, MemoryError) else "No space left") in done.stderr


def test_dry_run_shows_the_plan_and_writes_nothing(inside, small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "no-cache"))
    done = inside(*small_run, "--dry-run")
    assert done.returncode == 0, done.stderr
    for fragment in (
        "objectives", "distribution_matching x", "320 images = 20 steps of 16", "nothing was written",
        "64 noise-image pairs", "teacher evaluations", "under digits8",
        "11 forward-equivalents an image (student 6, teacher 1, fake_score 4)", "activations", "GB free", "images/s",
    ):  # fmt: skip
        assert fragment in " ".join(done.stdout.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(cli):
    done = cli("--debug", "run", "dmd", "--resume", "absent")
    assert done.returncode == 2 and "Traceback" in done.stderr
