"""Writes that are whole or absent, and what is said of those that fail."""

import errno
import os

import pytest
import torch
from safetensors import SafetensorError

from distillkit.files import (
    MACHINE,
    WriteError,
    append_bytes,
    remove_leftovers,
    replacing,
    unwritable,
    write_bytes,
    write_tensors,
)


class Full:
    """A file of which half is written and then no more."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_append_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.files.RETRY_SECONDS", (0.0, 0.0))
    path = tmp_path / "metrics.jsonl"
    append_bytes(path, b"one\n")
    real = type(path).open
    monkeypatch.setattr(type(path), "open", lambda *a, **k: Full(real(*a, **k)))
    with pytest.raises(WriteError, match=r"metrics.jsonl.*No space left.*MiB free"):
        append_bytes(path, b"two\n")
    monkeypatch.undo()
    append_bytes(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_what_is_written_is_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    with replacing(tmp_path / "made") as aside:
        os.close(os.open(aside, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_place_that_cannot_be_written_is_named_with_the_reason_and_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.files.time.sleep", lambda seconds: pytest.fail("tried again"))
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file is a file, and a folder is due there"):
        write_bytes(tmp_path / "file" / "inner" / "x", b"")
    assert unwritable(tmp_path / "file" / "inner") and not unwritable(tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())


def test_leftovers_of_processes_that_are_gone_are_removed_and_others_stay(tmp_path):
    gone, alive, elsewhere = 2**22 - 3, os.getppid(), "0" * 8
    ended = [f".x.{MACHINE}-{gone}.0a1b2c.tmp", f".old.{elsewhere}-{gone}.0a1b2c.tmp"]
    written = [
        f".y.{MACHINE}-{alive}.0a1b2c.tmp", f".y.{MACHINE}-{os.getpid()}.0a1b2c.tmp",
        # Of another machine that shares the folder, whose numbers mean nothing here.
        f".x.{elsewhere}-{gone}.0a1b2c.tmp",
    ]  # fmt: skip
    others = [".hidden.tmp", "z.1.tmp"]
    for name in [*ended, *written, *others]:
        (tmp_path / name).touch()
    os.utime(tmp_path / ended[1], (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*written, *others])
    remove_leftovers(tmp_path, ours=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_what_is_being_written_is_distinguished_from_what_is_left_over(tmp_path):
    with replacing(tmp_path / "x") as aside:
        aside.touch()
        remove_leftovers(tmp_path)
        assert aside.exists()
        remove_leftovers(tmp_path, ours=True)
        assert not aside.exists(), "its name is one that is recognised"
        aside.touch()


def test_a_full_disk_under_the_library_of_tensors_is_named_like_any_other(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("distillkit.files.RETRY_SECONDS", ())
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(WriteError, match=r"x.safetensors: No space left on device .*MiB free"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, {})
    assert not list(tmp_path.iterdir())
