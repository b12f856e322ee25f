"""`distillkit cache`: what lies there is listed, what nothing reads is removed, and everything else stays as it is."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distillkit.data.claims import Claims
from distillkit.data.pair_store import PairStore
from distillkit.data.shards import CLAIMS, identity_hash
from distillkit.downloads import lock_of
from distillkit.files import MACHINE, note_use
from distillkit.jobs.cache import contents
from distillkit.jobs.prune import InUse, remove
from distillkit.locks import held
from distillkit.models.store.resolve import load_teacher

DAY = 86_400.0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path / "cache"


@pytest.fixture
def pairs(cache, inside, tiny_teacher_folder):
    """Pairs of the tiny teacher, as the command makes them."""
    made = inside("pairs", "make", "--teacher", tiny_teacher_folder, "--count", "8", "--quiet")
    assert made.returncode == 0, made.stderr
    [folder] = (cache / "pairs").iterdir()
    return folder


def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def write(path: Path, size: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def older(path: Path, days: float) -> None:
    for place in (path, *path.rglob("*")):
        os.utime(place, (time.time() - days * DAY,) * 2)


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in root.rglob("*")}


def of_another_version(folder: Path) -> Path:
    """A set of pairs whose identity is another version's, under the name that this version gave it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    identity = {**manifest["identity"], "noise": "float16"}
    other = folder.with_name(f"old-{identity_hash(identity)}")
    shutil.copytree(folder, other)
    (other / "manifest.json").write_text(json.dumps({**manifest, "identity": identity}))
    return other


@pytest.fixture
def spare(cache, pairs):
    """What nothing reads, by its path in the cache."""
    process = ended()
    of = [
        write(cache / "downloads" / ".a.pkl.part", 3000), write(cache / "downloads" / ".b.pkl.part.json"),
        write(cache / "evaluation" / ".edm-cifar10-32x32.npz.part"),
        write(pairs / f".shard-000001.safetensors.{MACHINE}-{process}.0a1b2c.tmp"),
        write(cache / "records" / f".{'0' * 16}.json.{MACHINE}-{process}.0a1b2c.tmp"),
        of_another_version(pairs), cache / "prompts" / f"list-{'a' * 16}", cache / "records" / f"{'1' * 16}.json",
        write(cache / "teachers" / f"mine-{'2' * 16}" / "model.safetensors").parent,
    ]  # fmt: skip
    write(cache / "downloads" / ".a.pkl.part.json", 50)
    write(of[6] / "texts")
    (of[6] / "prompts.json").write_text('{"format": 0, "count": 3}')
    of[7].write_text('{"format": 1}')
    return {str(path.relative_to(cache)) for path in of}


def removed(said: str, verb: str = "removed") -> set[str]:
    return {line.split()[verb.count(" ") + 1] for line in said.splitlines() if line.startswith(f"{verb} ")}


def test_what_nothing_reads_is_removed_and_the_rest_stays(cache, pairs, spare, inside):
    kept = {pairs.name, *(path.name for path in pairs.glob("[!.]*"))}
    before = tree(cache)
    listed = inside("cache")
    assert listed.returncode == 0 and "read by nothing: --prune" in listed.stdout, listed.stderr
    dry = inside("cache", "--prune", "--dry-run")
    assert dry.returncode == 0 and removed(dry.stdout, "would remove") == spare, dry.stdout
    assert tree(cache) == before, "listing changes nothing"
    done = inside("cache", "--prune")
    assert done.returncode == 0 and removed(done.stdout) == spare, done.stderr
    assert "half a download" in done.stdout and "made by another version" in done.stdout
    assert "would be free" in dry.stdout and " freed in " in done.stdout
    assert (
        not any((cache / path).exists() for path in spare) and not (cache / "downloads" / ".a.pkl.part.json").exists()
    )
    assert {path.name for path in (cache / "pairs").rglob("[!.]*")} == kept
    again = inside("cache", "--prune")
    assert again.returncode == 0 and "nothing to remove" in again.stdout


def test_the_kinds_and_their_entries_are_listed(cache, pairs, inside):
    note_use(pairs / "manifest.json")
    [entry] = contents().of("pairs")
    assert entry.bytes >= sum(path.stat().st_size for path in pairs.glob("shard-*")) and entry.spare == ""
    kinds = inside("cache").stdout
    assert "noise-image pairs" in kinds and f"in {cache}" in kinds
    shown = inside("cache", "pairs").stdout
    assert pairs.name in shown
    assert "tiny, 1 shard" in shown and time.strftime("%Y-%m-%d") in shown
    assert "no teachers in" in inside("cache", "teachers").stdout
    shutil.rmtree(cache)
    assert "the cache is empty" in inside("cache").stdout and not cache.exists()


def test_what_other_processes_are_at_work_on_stays(cache, pairs, spare, inside, tmp_path):
    """A download, a set whose shards are claimed, one that a run reads, and a measurement."""
    working = write(cache / "evaluations" / ("3" * 16) / "part-0" / "features.f32")
    older(cache / "evaluations", 50)
    run = tmp_path / "run"
    write(run / ".owner.json").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    (pairs / "used-by.json").write_text(json.dumps({"runs": [str(run)]}))
    other = next(path for path in (cache / "pairs").iterdir() if path != pairs)
    older(pairs, 50)
    with (
        held(lock_of(cache / "downloads" / "a.pkl"), lambda: None), Claims(other / CLAIMS) as claims,
        held(cache / "evaluations" / f"{'3' * 16}.0.lock", lambda: None),
    ):  # fmt: skip
        assert claims.take(0)
        done = inside("cache", "--prune", "--older-than", "30d")
    assert done.returncode == 0, done.stderr
    busy = {"downloads/.a.pkl.part", f"pairs/{other.name}", f"pairs/{pairs.name}", f"evaluations/{'3' * 16}"}
    assert {line.split()[1] for line in done.stdout.splitlines() if line.startswith("left ")} == busy, done.stdout
    assert f"the run {run} reads it" in done.stdout and "other processes are writing it" in done.stdout
    assert working.exists() and all((cache / path).exists() for path in busy)
    (run / ".owner.json").write_text(json.dumps({"pid": ended(), "host": socket.gethostname()}))
    later = inside("cache", "--prune", "--older-than", "30d")
    assert removed(later.stdout) >= busy and not working.exists(), later.stdout


def test_nothing_outside_and_nothing_foreign_is_touched(cache, pairs, inside, tmp_path):
    outside = write(tmp_path / "elsewhere" / ".x.pkl.part")
    old = of_another_version(pairs)
    shutil.copytree(old, tmp_path / "elsewhere" / old.name)
    (cache / "latents").symlink_to(tmp_path / "elsewhere")
    shutil.rmtree(old)
    old.symlink_to(tmp_path / "elsewhere" / old.name)
    notes = write(pairs / "notes.txt")
    write(cache / "thesis.tex")
    write(cache / "downloads" / "unknown.pkl")
    older(tmp_path, 90)
    before = tree(tmp_path)
    done = inside("cache", "--prune", "--older-than", "1h")
    assert done.returncode == 0 and "nothing to remove" in done.stdout, done.stdout
    assert tree(tmp_path) == before
    for path, why in (
        (cache / "latents", "a link"), (old, "a link"), (pairs, "holds notes.txt"), (cache / "thesis.tex", "no file"),
        (cache / "downloads" / "unknown.pkl", "no file of a teacher"),
    ):  # fmt: skip
        assert f"left alone: {path}: {why}" in done.stdout, done.stdout
    held = inside("cache", "pairs").stdout
    assert f"left alone: {pairs}" in held and "thesis.tex" not in held, "what is in that kind's folder alone"
    assert "nothing of distillkit's is in" in inside("cache").stdout
    notes.unlink()
    link = pairs / "shard-000007.safetensors"
    link.symlink_to(outside)
    assert "holds a link" in inside("cache", "--prune").stdout and outside.exists()


def test_what_became_a_link_after_it_was_listed_is_not_removed(cache, pairs, tmp_path):
    of_another_version(pairs)
    [entry] = [entry for entry in contents().entries if entry.spare]
    (cache / "pairs").rename(tmp_path / "moved")
    (cache / "pairs").symlink_to(tmp_path / "moved")
    with pytest.raises(InUse, match="a link"):
        remove(entry, cache)
    assert len(list((tmp_path / "moved").iterdir())) == 2


def test_what_is_old_is_removed_where_it_is_made_again(cache, pairs, inside, tiny_teacher_folder):
    shutil.copytree(tiny_teacher_folder, cache / "teachers" / f"tiny-{'4' * 16}")
    write(cache / "evaluation" / "inception-2015-12-05.pt")
    older(cache, 40)
    assert removed(inside("cache", "--prune", "--older-than", "8w").stdout) == set()
    # A use is noted, whatever the file system says of reading.
    store = PairStore(load_teacher(str(tiny_teacher_folder)))
    store.open(8, torch.device("cpu"))
    os.utime(pairs / "manifest.json", (0, 0))
    store.open(8, torch.device("cpu"))
    assert removed(inside("cache", "--prune", "--older-than", "30d").stdout) == set() and pairs.is_dir()
    older(pairs, 40)
    done = inside("cache", "--prune", "--older-than", "30d")
    assert removed(done.stdout) == {f"pairs/{pairs.name}"} and "last used 40 days ago" in done.stdout
    assert (cache / "teachers" / f"tiny-{'4' * 16}").is_dir() and (cache / "evaluation").is_dir()


def test_an_interruption_leaves_what_the_next_one_removes(cache, pairs, inside, monkeypatch):
    old = of_another_version(pairs)

    def stopped(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("distillkit.jobs.prune.shutil.rmtree", stopped)
        assert inside("cache", "--prune").returncode == 130
    [aside] = (cache / "pairs").glob(".*.tmp")
    assert not old.exists() and pairs.is_dir()
    assert "nothing to remove" in inside("cache", "--prune").stdout, "this process is still there"
    aside.rename(aside.with_name(aside.name.replace(f"-{os.getpid()}.", f"-{ended()}.")))
    assert len(removed(inside("cache", "--prune").stdout)) == 1 and not list((cache / "pairs").glob(".*.tmp"))


def test_what_cannot_be_removed_is_named_and_the_rest_goes_on(cache, pairs, spare, inside, monkeypatch):
    def refused(self, target):
        if ".a.pkl" in self.name:
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    real = Path.rename
    monkeypatch.setattr(Path, "rename", refused)
    done = inside("cache", "--prune")
    assert "left downloads/.a.pkl.part (half a download): Permission denied" in done.stdout
    assert removed(done.stdout) == spare - {"downloads/.a.pkl.part"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there is nothing of the kind nothing: teachers"),
        (["pairs", "--prune"], "leave the kind out"),
        (["--dry-run"], "--dry-run goes with --prune"),
        (["--older-than", "30d"], "--older-than goes with --prune"),
        (["--prune", "--older-than", "month"], "such as 12h, 30d or 8w"),
    ],
)
def test_what_cannot_be_asked_is_one_message(cache, inside, arguments, said):
    done = inside("cache", *arguments)
    assert done.returncode == 2 and said in done.stderr
