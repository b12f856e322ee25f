"""`--dry-run`: nothing is downloaded, what the run would refuse is refused, and the real data are named."""

import socket
from types import SimpleNamespace

import pytest
from PIL import Image

from distillkit.downloads import is_for_a_download, nothing_downloaded, offline, only_planned
from distillkit.errors import DistillkitError
from distillkit.models.diffusers import hub
from distillkit.parts.perceptual import LPIPS


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Plans are looked at here, not speeds."""
    monkeypatch.setattr("distillkit.jobs.plan.try_training", untried)


def untried(*args, **more):
    raise DistillkitError("left out")


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to reach another machine, which fails; the hub is not forbidden by the user."""
    attempts = []

    def attempt(*args, **more):
        attempts.append(args)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, attempt)
    monkeypatch.setattr(socket, "getaddrinfo", attempt)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return attempts


def test_a_run_with_a_published_teacher_is_planned_without_the_network(inside, no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("distillkit.parts.perceptual.cached", lambda: None)
    done = inside("run", "dmd", "--teacher", "edm-cifar10-cond", "--dry-run")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.replace("│", " ").split())
    assert "to be downloaded VGG-16" in text and "to be downloaded: 2" in text
    assert not no_network
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_a_shipped_suite_is_planned_or_refused_without_the_network(inside, no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    for more in ((), ("--dry-run",)):
        # Its protocol's files are not there: the benchmark would be refused so too, before the teacher is downloaded.
        done = inside("bench", "--suite", "cifar10", *more)
        assert done.returncode == 1 and "protocols fetch" in done.stderr
    assert not no_network


def test_a_repository_of_the_hub_is_named_and_nothing_more_is_said(inside, no_network):
    done = inside("run", "kd", "--teacher", "hf:someone/something", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "hf:someone/something" in done.stdout and "to be downloaded" in done.stdout
    done = inside("teachers", "train", "--data", "hf:someone/pictures", "--dry-run")
    assert done.returncode == 0 and "hf:someone/pictures" in done.stdout
    assert not no_network


def test_a_forbidden_network_is_refused_as_by_the_run(inside, no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    for command in (("run", "dmd", "--teacher", "edm-cifar10-cond"), ("run", "kd", "--teacher", "hf:a/b")):
        for more in ((), ("--dry-run",)):
            done = inside(*command, *more)
            assert done.returncode == 1 and "HF_HUB_OFFLINE" in done.stderr
    assert not no_network


def test_within_a_plan_nothing_is_downloaded_and_after_it_all_is_as_before(no_network):
    with nothing_downloaded() as needed:
        assert offline() and only_planned("a file") and only_planned("a file")
        assert isinstance(LPIPS.pretrained(), LPIPS)
        with pytest.raises(DistillkitError) as refused:
            hub.snapshot("hf:a/b")
        assert is_for_a_download(refused.value)
    assert needed.names[0] == "a file" and "hf:a/b" in needed.names
    assert not offline() and not only_planned("a file") and not is_for_a_download(refused.value)
    assert not no_network


@pytest.mark.parametrize("problem", ["occupied", "file", "running", "batch", "data", "disk", "protocol", "student"])
def test_a_plan_refuses_what_the_run_refuses(inside, small_run, tmp_path, monkeypatch, problem):
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "config.yaml").write_text("method: dmd\n")
    more = {
        "occupied": ["--output-dir", "occupied"], "file": ["--output-dir", "file/run"],
        "running": ["--output-dir", "running"], "batch": ["--batch", "0"],
        "data": ["--regression-weight", "nowhere"], "disk": ["--pairs-count", "4096"],
        "protocol": ["--protocol", "nothing-like-it"], "student": ["--student", "nowhere"],
    }[problem]  # fmt: skip
    if problem == "disk":
        small = SimpleNamespace(free=1000, total=1000)
        monkeypatch.setattr("distillkit.data.pairs.shutil.disk_usage", lambda path: small)
    said = []
    for mode in ((), ("--dry-run",)):
        done = inside(*small_run, *more, *mode)
        assert done.returncode in (1, 2), done.stdout
        said.append((done.returncode, done.stderr.splitlines()[-1]))
    assert said[0] == said[1]


def test_the_disk_that_cannot_hold_the_checkpoints_is_refused(inside, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("distillkit.files.shutil.disk_usage", lambda path: SimpleNamespace(free=10**5))
    done = inside("run", "consistency", "--teacher", "mixture", "--batch", "8", "--dry-run")
    assert done.returncode == 1 and "checkpoints" in done.stderr


def test_images_are_opened_and_named(inside, tmp_path):
    missing = inside("run", "dmd2", "--teacher", "digits", "--data", "nowhere", "--dry-run")
    assert missing.returncode == 2 and "nowhere" in missing.stderr
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), number).save(tmp_path / "pictures" / f"{number}.png")
    done = inside("teachers", "train", "--data", "pictures", "--channel-mult", "1", "--dry-run")
    assert done.returncode == 0 and "3 images" in done.stdout and "pictures" in done.stdout
    embedded = inside("teachers", "train", "mixture", "--dry-run")
    assert "digits" not in embedded.stdout + embedded.stderr
