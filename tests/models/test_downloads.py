"""Downloads against a server that cuts, stalls, alters and refuses."""

import hashlib
import os
from contextlib import contextmanager

import pytest

from distillkit import DistillkitError
from distillkit.downloads import CHUNK, download, lock_of
from distillkit.errors import Interrupted
from distillkit.locks import held
from distillkit.progress import Quiet
from tests.models.bad_server import serving

DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def get(tmp_path, monkeypatch):
    """Download through a server with faults; returns (server, target)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "file.bin").write_bytes(DATA)
    target = tmp_path / "got" / "file.bin"

    def run(*faults, name="file.bin", **options):
        with serving(tmp_path / "host", *faults) as server:
            try:
                found = download(f"{server.address}/{name}", target, reporter=Quiet(), timeout=2, pause=0.01, **options)
                assert found == SHA256
            finally:
                run.requests = server.requests
        return target

    run.target = target
    return run


def leftovers(target):
    """But for the lock."""
    return sorted(p.name for p in target.parent.iterdir() if p.suffix != ".lock") if target.parent.exists() else []


def test_a_file_that_another_process_downloads_is_waited_for_and_taken(get, monkeypatch):
    with held(lock_of(get.target), lambda: None), pytest.raises(Interrupted, match="waiting"):
        get(should_stop=lambda: 15)

    @contextmanager
    def arrived(lock, waiting):
        assert lock == lock_of(get.target)
        get.target.write_bytes(DATA)
        yield

    with monkeypatch.context() as patch:
        patch.setattr("distillkit.downloads.held", arrived)
        get(expected_sha256=SHA256)
    assert get.requests == [], "it was downloaded twice"


@pytest.mark.parametrize(
    "faults",
    [(), ("cut",), ("cut", "cut", "cut", "cut", "cut", "cut", "cut"), ("stall",), ("503", "503"), ("429", "cut", "500"),
     ("no length",), ("no tag",), ("cut", "416")],
)  # fmt: skip
def test_faults_of_the_line_are_overcome(get, faults):
    target = get(*faults)
    assert target.read_bytes() == DATA and leftovers(target) == ["file.bin"]


def test_a_cut_is_continued_not_repeated(get):
    get("cut")
    first, second = get.requests
    assert first == "whole" and len(DATA) // 2 - CHUNK < int(second[6:-1]) <= len(DATA) // 2


def test_a_second_call_goes_on_where_the_first_was_stopped(get):
    with pytest.raises(Interrupted, match="goes on") as stopped:
        get(should_stop=lambda: 15)
    assert stopped.value.exit_code == 143
    assert get.target.exists() is False and len(leftovers(get.target)) == 2
    get()
    assert get.requests == [f"bytes={CHUNK}-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(get, tmp_path):
    with pytest.raises(Interrupted):
        get("cut", should_stop=lambda: 2)
    part = get.target.with_name(".file.bin.part")
    part.write_bytes(b"x" * part.stat().st_size)
    notes = part.with_name(".file.bin.part.json")
    notes.write_text(notes.read_text().replace('"version": "\\"', '"version": "\\"other'))
    get()
    assert get.target.read_bytes() == DATA


def test_wrong_hash_is_refused_and_nothing_stays(get):
    with pytest.raises(DistillkitError) as error:
        get("alter", expected_sha256=SHA256)
    assert SHA256 in str(error.value) and "received sha256" in str(error.value)
    assert leftovers(get.target) == []


@pytest.mark.parametrize(
    ("faults", "name", "fragments"),
    [
        ((), "absent.bin", ["404", "absent.bin", "place the file at"]),
        (("403",), "file.bin", ["403"]),
        (("503",) * 5, "file.bin", ["503", "place the file at"]),
        (("500", "stall", "503", "503", "503", "503"), "file.bin", ["503"]),
    ],
)
def test_what_cannot_be_had_is_one_message(get, faults, name, fragments):
    with pytest.raises(DistillkitError) as error:
        get(*faults, name=name)
    for fragment in fragments:
        assert fragment in str(error.value)
    assert not get.target.exists()


def test_no_server_and_no_such_host(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    for address, reason in (
        ("http://127.0.0.1:9/x", "connection failed"),
        ("http://no-such-host.invalid/x", "cannot be"),
    ):
        with pytest.raises(DistillkitError, match=reason):
            download(address, tmp_path / "x", reporter=Quiet(), timeout=0.5, pause=0.001)


def test_full_disk_is_one_message(get, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 5))
    with pytest.raises(DistillkitError, match="MiB are free"):
        get()
