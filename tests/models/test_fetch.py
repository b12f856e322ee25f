"""`teachers fetch` and `--teacher NAME` through the real entry point, from a mirror on loopback."""

import json
import re
import signal
import time

import pytest
import torch

from tests.conftest import denoiser_of
from tests.foreign.edm_format import network_bytes
from tests.models.bad_server import serving

STEM = "edm-cifar10-32x32-uncond-vp"
SMALL = {"img_resolution": 32, "img_channels": 3, "label_dim": 0, "model_type": "SongUNet", "model_channels": 8,
         "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [], "augment_dim": 9}  # fmt: skip


@pytest.fixture
def mirror(tmp_path):
    """A folder laid out like the published host, with a small network under a catalogued name."""
    torch.manual_seed(0)
    denoiser = denoiser_of({**SMALL, "sigma_data": 0.5})
    folder = tmp_path / "host" / "edm" / "pretrained"
    folder.mkdir(parents=True)
    (folder / f"{STEM}.pkl").write_bytes(network_bytes(denoiser, SMALL))
    return tmp_path / "host"


@pytest.fixture
def environment(tmp_path, mirror):
    return {"DISTILLKIT_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}


def test_fetch_shows_licence_records_the_hash_and_converts_once(
    inside, tmp_path, mirror, environment, monkeypatch, caplog
):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with serving(mirror, "cut") as server:
        monkeypatch.setenv("DISTILLKIT_MIRROR", server.address)
        done = inside("teachers", "fetch", "edm-cifar10-uncond")
    assert done.returncode == 0, done.stderr
    assert "CC BY-NC-SA 4.0" in done.stdout.partition("downloading")[0], "the licence is shown before the download"
    assert "recorded at first use" in done.stdout and "next: distillkit run METHOD" in done.stdout
    assert "model_channels is 8; the catalogue has 128" in caplog.text
    lock = json.loads((tmp_path / "cache" / "teachers" / "lock.json").read_text())["edm-cifar10-uncond"]
    assert re.fullmatch(r"[0-9a-f]{64}", lock["sha256"]) and lock["sha256"] in done.stdout and lock["bytes"] > 1000
    assert lock["url"].startswith("https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/")
    folder = tmp_path / "cache" / "teachers" / "edm-cifar10-uncond"
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "teacher.json"}
    left = [path.name for path in (tmp_path / "cache" / "downloads").iterdir() if path.suffix != ".lock"]
    assert left == [], "the pickle is not needed any more"
    # From here on no network is needed, under any of its names.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = inside(
        "run", "dmd", "--teacher", STEM, "--dry-run", "--distance", "l2", "--batch", "2", "--protocol", "none"
    )
    assert again.returncode == 0, again.stderr
    assert "cifar10 unconditional" in again.stdout


def test_another_file_under_a_recorded_name_is_refused(inside, tmp_path, mirror, environment, monkeypatch):
    for key, value in (environment | {"DISTILLKIT_MIRROR": str(mirror)}).items():
        monkeypatch.setenv(key, value)
    assert inside("teachers", "fetch", "cifar10-uncond").returncode == 0
    published = mirror / "edm" / "pretrained" / f"{STEM}.pkl"
    published.write_bytes(published.read_bytes() + b"\0")
    folder = tmp_path / "cache" / "teachers" / "edm-cifar10-uncond"
    for file in folder.iterdir():
        file.unlink()
    with serving(mirror) as server:
        monkeypatch.setenv("DISTILLKIT_MIRROR", server.address)
        done = inside("teachers", "fetch", "cifar10-uncond")
    assert done.returncode == 1
    assert "expected sha256" in done.stderr and "received sha256" in done.stderr
    assert list(folder.iterdir()) == []


def test_hostile_file_under_a_published_name_is_refused(inside, tmp_path, mirror, environment, monkeypatch):
    for key, value in (environment | {"DISTILLKIT_MIRROR": str(mirror)}).items():
        monkeypatch.setenv(key, value)
    (mirror / "edm" / "pretrained" / f"{STEM}.pkl").write_bytes(b"\x80\x04cposix\nsystem\n\x8c\x0ctouch canary\x85R.")
    done = inside("teachers", "fetch", "edm-cifar10-uncond")
    assert done.returncode == 1 and "posix.system" in done.stderr and "Nothing in the file was run" in done.stderr
    assert not (tmp_path / "canary").exists()


def test_offline_names_the_missing_file_and_how_to_place_it(inside, tmp_path, mirror, environment, monkeypatch):
    for key, value in (environment | {"HF_HUB_OFFLINE": "1"}).items():
        monkeypatch.setenv(key, value)
    done = inside("run", "dmd", "--teacher", "edm-cifar10-uncond", "--output-dir", "x", "--distance", "l2")
    place = tmp_path / "cache" / "downloads" / f"{STEM}.pkl"
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE" in done.stderr and str(place) in done.stderr and f"{STEM}.pkl" in done.stderr
    assert not (tmp_path / "x").exists()
    place.parent.mkdir(parents=True)
    place.write_bytes((mirror / "edm" / "pretrained" / f"{STEM}.pkl").read_bytes())
    done = inside("teachers", "fetch", "edm-cifar10-uncond")
    assert done.returncode == 0 and f"taking {place}" in done.stdout


def test_a_signal_during_a_download_keeps_what_has_arrived(start, tmp_path, mirror, environment):
    published = mirror / "edm" / "pretrained" / f"{STEM}.pkl"
    published.write_bytes(published.read_bytes() + bytes(40 * 2**20))
    with serving(mirror, "slow") as server:
        process = start(
            "teachers", "fetch", "edm-cifar10-uncond", env=environment | {"DISTILLKIT_MIRROR": server.address}
        )
        part = tmp_path / "cache" / "downloads" / f".{STEM}.pkl.part"
        deadline = time.monotonic() + 1200
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=1200) == 143
        assert "goes on with it" in process.stdout.read()
        assert part.stat().st_size > 0


@pytest.mark.parametrize("text", ["{", "[1]", '{"edm-cifar10-uncond": "sha"}'])
def test_a_damaged_lock_file_is_named_and_trusts_nothing(inside, tmp_path, mirror, environment, monkeypatch, text):
    for key, value in (environment | {"DISTILLKIT_MIRROR": str(mirror)}).items():
        monkeypatch.setenv(key, value)
    lock = tmp_path / "cache" / "teachers" / "lock.json"
    lock.parent.mkdir(parents=True)
    lock.write_text(text)
    done = inside("teachers", "fetch", "edm-cifar10-uncond")
    assert done.returncode == 1 and "cannot read the recorded hashes" in done.stderr and str(lock) in done.stderr
    assert lock.read_text() == text
