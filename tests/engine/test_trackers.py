"""Trackers: one project, a run that goes on after a resume, pictures, the closing table; failures are warnings."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distillkit.engine.trackers import TrackedRun, Trackers, project_of, require_tracker
from distillkit.errors import UsageError

CONFIG = {"method": "kd", "teacher": "digits", "seed": 3, "training": {"lr": 1e-3}}


@pytest.fixture
def wandb(monkeypatch):
    """W&B as far as it is used, which keeps what it is called with."""
    module, calls = ModuleType("wandb"), []

    def init(**settings):
        calls.append(("init", settings))
        return SimpleNamespace(
            log=lambda values, step: calls.append(("log", values, step)), finish=lambda: calls.append(("finish",))
        )

    module.init, module.calls = init, calls
    module.Image = lambda path: ("image", path)
    module.Table = lambda columns, data: ("table", columns, data)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def picture(tmp_path):
    Image.new("L", (4, 2), 100).save(tmp_path / "grid.png")
    return tmp_path / "grid.png"


def used(which, run, picture):
    trackers = Trackers(which, run)
    trackers.log({"loss/a": 0.5}, 64)
    trackers.show("samples", picture, 64)
    trackers.table("results", ["generator", "FD"], [["teacher", 0.1], ["student", 0.2]], 64)
    assert trackers.active
    trackers.close()


def test_wandb_has_one_project_pictures_the_table_and_one_run_for_all_resumes(wandb, tmp_path, picture):
    run = TrackedRun("kd-digits", config=CONFIG, folder=tmp_path)
    used("wandb", run, picture)
    (_, first), *rest = wandb.calls
    assert first["project"] == "distillkit" and first["name"] == "kd-digits" and first["resume"] == "allow"
    assert first["config"] == CONFIG and first["dir"] == str(tmp_path)
    assert rest == [
        ("log", {"loss/a": 0.5}, 64), ("log", {"samples": ("image", str(picture))}, 64),
        ("log", {"results": ("table", ["generator", "FD"], [["teacher", 0.1], ["student", 0.2]])}, 64), ("finish",),
    ]  # fmt: skip
    wandb.calls.clear()
    used("wandb", TrackedRun("kd-digits", folder=tmp_path, resumed=True), picture)
    assert wandb.calls[0][1]["id"] == first["id"] == json.loads((tmp_path / "tracker.json").read_text())["wandb"]


def test_wandbs_own_variables_count_and_it_never_asks_for_a_key(wandb, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("WANDB_NAME", "named")
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    Trackers("wandb", TrackedRun("run", folder=tmp_path))
    settings = wandb.calls[0][1]
    assert settings["id"] == "mine" and "name" not in settings and "dir" not in settings
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not Trackers("wandb", TrackedRun("run", folder=tmp_path)).active
    assert "WANDB_API_KEY" in caplog.text and len(wandb.calls) == 1


def test_projects(monkeypatch):
    for name in ("WANDB_PROJECT", "DISTILLKIT_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    assert project_of("wandb", None) == project_of("", None) == "distillkit"
    monkeypatch.setenv("DISTILLKIT_PROJECT", "ours")
    assert project_of("tensorboard", None) == "ours"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert project_of("wandb", None) == "theirs" and project_of("wandb", "asked") == "asked"


def test_tensorboard_has_pictures_the_table_and_no_step_twice_after_a_resume(tmp_path, picture):
    used("tensorboard", TrackedRun("run", config=CONFIG, folder=tmp_path), picture)
    resumed = Trackers("tensorboard", TrackedRun("run", folder=tmp_path, resumed=True))
    for images, value in ((64, 0.4), (128, 0.3)):
        resumed.log({"loss/a": value}, images)
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("loss/a")] == [(64, 0.4), (128, 0.3)]
    texts = events.Tags()["tensors"]
    assert "configuration/text_summary" in texts


def test_tensorboards_picture_and_table_are_in_its_file(tmp_path, picture):
    used("tensorboard", TrackedRun("run", config=CONFIG, folder=tmp_path), picture)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    (shown,) = events.Images("samples")
    assert (shown.step, shown.width, shown.height) == (64, 4, 2)
    (table,) = events.Tensors("results/text_summary")
    assert b"student" in table.tensor_proto.string_val[0]
    (settings,) = events.Tensors("configuration/text_summary")
    assert b"training.lr: 0.001" in settings.tensor_proto.string_val[0]


def test_a_missing_package_is_an_error_before_anything_starts(inside, small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.engine.trackers.PACKAGES", {"wandb": "no_such_package"})
    with pytest.raises(UsageError, match="pip install"):
        require_tracker("wandb")
    done = inside(*small_run, "--report-to", "wandb", "--output-dir", "run")
    assert done.returncode == 2 and "pip install" in done.stderr and not (tmp_path / "run").exists()


def test_a_tracker_that_takes_numbers_alone_is_enough_and_failures_are_warnings(caplog, picture):
    class Plain:
        def __init__(self):
            self.closed = 0

        def log(self, values, images):
            if images > 64:
                raise OSError("the network is gone")

        def close(self):
            self.closed += 1

    plain = Plain()
    used(plain, None, picture)
    assert plain.closed == 1
    failing = Trackers(Plain())
    failing.log({"a": 1.0}, 128)
    failing.log({"a": 1.0}, 129)
    assert not failing.active and caplog.text.count("the network is gone") == 1
