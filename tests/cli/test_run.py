"""The main job through the real entry point: what it makes, and that it can be interrupted at any time."""

import json
import random
import signal
import subprocess
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distillkit import Run, load_student
from tests.conftest import HANG, command, environment


def start_run(start, small_run, folder, *more):
    return start(*small_run, "--output-dir", folder, *more)


def wait_for(process, condition):
    deadline = time.monotonic() + HANG
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "hung"
        time.sleep(0.01)


def final(folder):
    return load_file(folder / "student" / "model.safetensors")


def assert_same(a, b):
    assert all(torch.equal(a[name], b[name]) for name in a | b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_teacher_folder):
    """One uninterrupted run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    arguments = ["run", "dmd", "--teacher", tiny_teacher_folder, "--distance", "l2", "--duration", "1600", "--batch",
                 "16", "--pairs-count", "64", "--log-every", "32", "--checkpoint-every", "64", "--sample-every", "800",
                 "--evaluate-every", "800", "--evaluation-samples", "60", "--evaluate-samples", "60",
                 "--lr", "1e-3"]  # fmt: skip
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
        "checkpoints/best/average.safetensors", "student/model.safetensors", "student/student.json",
        "student/README.md", "student/samples.png", "untrained.json",
        "samples/step-000000000.png", "samples/step-000000100.png", "samples/README.txt",
    } <= present  # fmt: skip
    assert not [name for name in present if name.endswith((".pt", ".pth", ".pkl", ".bin", ".tmp"))]
    run = Run(folder)
    assert [row.nfe for row in run.rows] == [7.0, 1.0, 1.0], "counted, not claimed"
    assert run.record.protocol.name == "digits8" and run.record.figure.standard_error > 0
    assert run.record.subject.weights_sha256 == load_student(folder).description.weights_sha256
    assert set(run.health) == {
        "kl_gradient_rms", "fake_to_real_error", "std_to_teacher", "mean_to_teacher", "clipped_to_teacher",
    }  # fmt: skip
    assert run.summary["selection"]["evaluated"] == 2 and run.record.selection.checkpoints_scored == 2
    images = 1600
    assert run.summary["cost_forward_equivalents"] == {
        "pairs": 64 * 7, "student": images * 6, "teacher": images, "fake_score": images * 4,
    }  # fmt: skip
    assert "FD[digits8cnn/fc64]-60" in stdout and "±" in stdout and stdout.index("figures:") < stdout.index("training:")
    for expected in (
        "teacher, 4 Heun steps",
        "student, untrained",
        "student, distilled",
        f"distillkit sample {folder}",
    ):
        assert expected in stdout
    assert "\x1b[" not in stdout


def test_a_finished_run_is_compared_by_its_folder(finished, inside):
    done = inside("compare", finished[0])
    assert done.returncode == 0 and "FD[digits8cnn/fc64]-60" in done.stdout, done.stderr


def test_saved_configuration_runs_again_to_the_same_result(finished, inside, tmp_path):
    folder, _, _ = finished
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["duration"] == 1600
    done = inside("run", "dmd", "--config", folder / "config.yaml", "--output-dir", tmp_path / "again", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") < 16
    assert_same(final(folder), final(tmp_path / "again"))


def test_sample_makes_pictures(finished, inside, tmp_path):
    folder, _, _ = finished
    for output in ("grid.png", "many"):
        done = inside("sample", folder, "--num", "5", "--seed", "1", "--output", output, "--labels", "3,7")
        assert done.returncode == 0, done.stderr
        assert "5 samples, 1 network evaluation" in done.stdout
    from PIL import Image

    assert Image.open(tmp_path / "grid.png").size[0] > 100
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    assert Image.open(tmp_path / "many" / "000000.png").size == (8, 8)
    assert load_student(folder)(2, seed=1).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_resumed_run_equals_the_uninterrupted_one(
    finished, start, inside, tmp_path, number, code
):
    whole, _, arguments = finished
    folder = tmp_path / "run"
    process = start(*arguments, "--output-dir", folder)
    # Early enough for the signal to arrive before the last step on a fast machine.
    steps = random.randint(2, 10)
    log = folder / "metrics.jsonl"
    wait_for(process, lambda: log.exists() and log.read_text().count("\n") >= steps)
    process.send_signal(number)
    assert process.wait(timeout=HANG) == code
    output = process.stdout.read()
    assert f"distillkit run dmd --resume {folder}" in output and "saved at step" in output
    assert "Traceback" not in output
    done = inside("run", "dmd", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert_same(final(whole), final(folder))
    steps_logged = [json.loads(line)["step"] for line in log.read_text().splitlines() if "health" in line]
    assert steps_logged == sorted(set(steps_logged)), "no step is logged twice"


def test_kill_dash_nine_at_a_random_moment_then_resume_equals_uninterrupted(finished, start, inside, tmp_path):
    whole, _, arguments = finished
    folder = tmp_path / "run"
    process = start(*arguments, "--output-dir", folder)
    wait_for(process, (folder / "checkpoints" / "latest").exists)
    time.sleep(random.random())
    process.kill()
    process.wait()
    if (folder / "record.json").exists():
        pytest.skip("the run ended before it was killed")
    done = inside("run", "dmd", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert_same(final(whole), final(folder))
    assert Run(folder).summary["selection"] == Run(whole).summary["selection"]
    assert not list((folder / "checkpoints").glob(".step-*"))


def test_second_signal_stops_at_once_and_leaves_the_checkpoint(start, small_run, tmp_path):
    folder = tmp_path / "run"
    arguments = [*small_run, "--output-dir", str(folder), "--duration", "10M", "--checkpoint-every", "64"]
    process = start(*arguments, "--evaluate-samples", "100000", "--evaluate-every", "320")
    # During the long evaluation the first signal waits for a safe place; the second does not.
    log = folder / "metrics.jsonl"
    wait_for(process, lambda: log.exists() and log.read_text().count("\n") >= 9)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=HANG) == 130
    from distillkit.engine.checkpoint import Checkpoints

    assert Checkpoints(folder / "checkpoints").load().step > 0


def test_stop_while_making_pairs_keeps_them_and_resume_goes_on(finished, start, cli, tmp_path):
    _, _, arguments = finished
    folder = tmp_path / "run"
    cache = {"DISTILLKIT_CACHE": str(tmp_path / "cache")}
    many = [*arguments, "--output-dir", str(folder), "--pairs-count", "4096", "--pairs-steps", "10"]
    process = start(*many, env=cache)
    wait_for(process, lambda: len(list((tmp_path / "cache").rglob("shard-*"))) >= 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) == 143
    made = len(list((tmp_path / "cache").rglob("shard-*")))
    assert 2 <= made < 16
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    done = cli("run", "dmd", "--resume", folder, env=cache)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache").rglob("shard-*"))) == 16


def test_resume_from_a_torn_newest_checkpoint_warns_and_goes_on(finished, start, inside, tmp_path, caplog):
    whole, _, arguments = finished
    folder = tmp_path / "run"
    process = start(*arguments, "--output-dir", folder)
    wait_for(process, lambda: len(list((folder / "checkpoints").glob("step-*"))) >= 2)
    process.kill()
    process.wait()
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    weights = newest / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = inside("run", "dmd", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert newest.name in caplog.text, "the damaged one is named"
    assert_same(final(whole), final(folder))


def test_an_interrupted_run_is_sampled_measured_exported_and_started_from(finished, start, inside, tmp_path):
    _, _, arguments = finished
    folder = tmp_path / "run"
    process = start(*arguments, "--output-dir", folder)
    wait_for(process, lambda: len(list((folder / "checkpoints").glob("step-*"))) >= 2)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=HANG)
    step = Run(folder).checkpoint("latest").description.images_seen // 16
    for selector in ("", f"@{step}", "@average", "@student"):
        done = inside("sample", f"{folder}{selector}", "--num", "4", "--output", f"s{selector}.png")
        assert done.returncode == 0, done.stderr
    measured = inside("evaluate", f"{folder}@{step}", "--samples", "40", "-o", "r.json", "--quiet")
    assert measured.returncode == 0 and (tmp_path / "r.json").is_file(), measured.stderr
    assert inside("export", f"{folder}@average", "-o", "out").returncode == 0
    begun = inside(
        "run", "kd", "--teacher", arguments[3], "--student", f"{folder}@average", "--duration", "32", "--batch", "16",
        "--pairs-count", "64", "--evaluation-samples", "40", "--output-dir", "next",
    )  # fmt: skip
    assert (
        begun.returncode == 0
        and f"starts from the moving average of step {step} in {folder}" in begun.stdout.replace("\n", " ")
    ), begun.stderr
    unknown = inside("sample", f"{folder}@99999")
    assert unknown.returncode == 2 and str(step) in unknown.stderr


def test_a_finished_run_is_extended(small_run, inside, tmp_path):
    assert inside(*small_run, "--output-dir", "run", "--quiet").returncode == 0
    again = inside("run", "dmd", "--resume", "run", "--quiet")
    assert again.returncode == 2 and "--duration" in again.stderr
    longer = inside("run", "dmd", "--resume", "run", "--duration", "640")
    assert longer.returncode == 0 and "extended from 320 to 640" in longer.stdout, longer.stderr
    assert Run(tmp_path / "run").student.description.images_seen == 640


def test_tensorboard_on_request(small_run, inside, tmp_path):
    done = inside(*small_run, "--output-dir", "run", "--report-to", "tensorboard")
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [shown.step for shown in events.Images("samples")] == [0, 160, 320]
    (table,) = events.Tensors("results/text_summary")
    assert b"student, distilled" in table.tensor_proto.string_val[0]


def test_a_run_without_a_protocol_says_so_before_and_counts_its_evaluations(tiny_teacher_folder, inside, tmp_path):
    done = inside(
        "run", "dmd2", "--teacher", tiny_teacher_folder, "--evaluations", "3", "--gan-weight", "0",
        "--protocol", "none", "--duration", "64",
        "--batch", "16", "--output-dir", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("no figure of quality") < done.stdout.index("training:")
    run = Run(tmp_path / "run")
    assert run.record is None and [row.nfe for row in run.rows] == [7, 3, 3] and run.student.nfe == 3


def test_levels_of_a_student_are_chosen_for_every_method_that_has_some(tiny_teacher_folder, inside, tmp_path):
    common = ["--teacher", tiny_teacher_folder, "--duration", "32", "--batch", "16", "--protocol", "none", "--quiet"]
    for method, flags, levels in (
        ("sid", ["--start-ratio", "5"], [5.0]),
        ("dmd2", ["--evaluations", "2", "--gan-weight", "0", "--student-levels", "40,3"], [40.0, 3.0]),
        ("consistency", ["--source", "pairs", "--pairs-count", "64", "--start-ratio", "20"], [20.0]),
    ):
        done = inside("run", method, *common, *flags, "--output-dir", method)
        assert done.returncode == 0, done.stderr
        sampler = load_student(tmp_path / method).generator.sampler
        assert list(getattr(sampler, "levels", None) or [sampler.t]) == levels
    refused = inside("run", "progressive", *common, "--source", "pairs", "--start-ratio", "5", "--output-dir", "p")
    assert refused.returncode == 2 and "--start-ratio" in refused.stderr and not (tmp_path / "p").exists()


METHOD = '''
from distillkit import Method, Objective, OneStep, Pairs, PairSamples, Recipe, Sampler, StudentGenerator, hookimpl


class TwoJumps(Sampler):
    level: float = 3.0

    def __call__(self, denoiser, noise, condition, renoise=None):
        first = OneStep()(denoiser, noise, condition)
        return first + 0 * OneStep(t=self.level)(denoiser, noise, condition)


class Endpoint(Objective):
    needs = (Pairs, PairSamples)

    def __call__(self, step):
        return (step.pair_samples - step.pairs.sample).square().mean()


class Mine(Method):
    """A method of one file."""

    name = "mine"

    def recipe(self, teacher, config):
        return Recipe(StudentGenerator.from_teacher(teacher, TwoJumps()), [Endpoint()])


@hookimpl
def distillkit_methods():
    return [Mine]


@hookimpl
def distillkit_samplers():
    return {"TwoJumps": TwoJumps}
'''


def test_a_method_in_a_file_runs_with_its_own_sampler(tiny_teacher_folder, cli, tmp_path):
    (tmp_path / "mine.py").write_text(METHOD)
    done = cli(
        "run", "./mine.py", "--teacher", tiny_teacher_folder, "--duration", "64", "--batch", "16",
        "--pairs-count", "64", "--evaluation-samples", "40", "--output-dir", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "student" / "student.json").read_text())["sampler"] == {
        "kind": "mine.py:TwoJumps", "level": 3.0,
    }  # fmt: skip
    lost = cli("sample", "run")
    assert lost.returncode == 2 and "--plugin" in lost.stderr and "mine.py" in lost.stderr
    found = cli("--plugin", "mine.py", "sample", "run", "--num", "4")
    assert found.returncode == 0 and "2 network evaluation(s)" in found.stdout, found.stderr


def test_the_closing_table_is_followed_by_figures_beside_the_own_one(inside):
    done = inside(
        "run", "kd", "--teacher", "mixture", "--duration", "64", "--batch", "32", "--pairs-count", "16",
        "--pairs-steps", "2", "--output-dir", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in " ".join(done.stdout.split()).split("covered[")[1:] if "(student, distilled)" in line]
    assert lines and "(teacher, 18 Heun steps)" in lines[-1] and "(student, untrained)" in lines[-1]
