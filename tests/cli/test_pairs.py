"""`distillkit pairs`: writers at one time of which one is killed, a run that finds the pairs, damage that is found."""

import json
import signal
import time
from contextlib import suppress

import pytest

import distillkit
from distillkit import UsageError
from distillkit.jobs.pairs import parse_part
from tests.conftest import HANG

SHARDS, STEPS = 8, 5


def cache(env_folder):
    return {"DISTILLKIT_CACHE": str(env_folder)}


def claimants(folder):
    """Numbers of the processes that have claimed a shard."""
    found = set()
    for claim in folder.glob("pairs/*/.claims/[0-9]*"):
        with suppress(OSError):  # it may be given back by now
            if len(parts := claim.read_text().split(":")) == 3:
                found.add(int(parts[1]))
    return found


def test_two_writers_one_killed_then_a_run_that_finds_the_pairs(
    start, inside, tmp_path, monkeypatch, tiny_teacher_folder, caplog
):
    made_by = ["--teacher", str(tiny_teacher_folder), "--count", str(SHARDS * 256), "--steps", str(STEPS)]
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    writers = [start("pairs", "make", *made_by, "--quiet", env=cache(tmp_path / "cache")) for _ in range(2)]
    until = time.monotonic() + HANG
    while not (at_work := claimants(tmp_path / "cache")):
        assert time.monotonic() < until
        time.sleep(0.01)
    (folder,) = tmp_path.glob("cache/pairs/tiny-*")
    victim = next(writer for writer in writers if writer.pid in at_work)
    victim.send_signal(signal.SIGKILL)
    survivor = writers[1 - writers.index(victim)]
    assert victim.wait(HANG) == -signal.SIGKILL and survivor.wait(HANG) == 0
    assert len(list(folder.glob("shard-*"))) == SHARDS and not (folder / ".claims").exists()
    assert len(json.loads((folder / "manifest.json").read_text())["shards"]) == SHARDS

    ran = inside(
        "run", "kd", "--teacher", str(tiny_teacher_folder), "--distance", "l2", "--pairs-steps", str(STEPS),
        "--pairs-count", str(SHARDS * 256), "--duration", "32", "--batch", "16", "--protocol", "none", "-o", "mine",
    )  # fmt: skip
    assert ran.returncode == 0, ran
    assert f"using {SHARDS * 256:,} noise-image pairs from {folder}" in (ran.stdout + ran.stderr).replace("\n", "")

    listed = inside("pairs", "list")
    assert listed.returncode == 0 and all(text in listed.stdout for text in ("tiny", "2,048", f"{STEPS} steps", "mine"))
    assert inside("pairs", "verify", *made_by).returncode == 0

    path = sorted(folder.glob("shard-*"))[5]
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    sorted(folder.glob("shard-*"))[2].unlink()
    alone = inside("pairs", "verify", folder.name)
    assert alone.returncode == 1 and "1 damaged: 5" in alone.stdout and "1 missing: 2" in alone.stdout
    fixed = inside("pairs", "verify", *made_by, "--fix")
    assert fixed.returncode == 0 and "2 shards were made anew" in fixed.stdout
    again = inside("pairs", "verify", *made_by)
    assert again.returncode == 0 and "8 pairs made again" in again.stdout and "everything is whole" in again.stdout
    (folder / "manifest.json").write_text("{")
    assert inside("pairs", "list").returncode == 0
    assert f"{folder} is left out: it holds {SHARDS} shards" in caplog.text


def test_parts_plans_and_python(inside, tmp_path, monkeypatch, tiny_teacher_folder):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    made_by = ["--teacher", str(tiny_teacher_folder), "--count", "1k"]
    plan = inside("pairs", "make", *made_by, "--dry-run", "--part", "2/2")
    assert plan.returncode == 0 and "512 pairs in 2 shards of 256" in plan.stdout and "3,584 teacher" in plan.stdout
    assert not (tmp_path / "cache").exists()
    part = inside("pairs", "make", *made_by, "--part", "1/2")
    assert part.returncode == 0 and "512 are still missing" in part.stdout, part
    found = distillkit.make_pairs(str(tiny_teacher_folder), count="1k", quiet=True)
    assert (found.count, found.made, found.missing) == (1000, 512, 0)
    assert distillkit.verify_pairs(str(tiny_teacher_folder), count="1k", quiet=True).whole
    (stored,) = distillkit.list_pairs()
    assert (stored.folder, stored.teacher, stored.count, stored.used_by) == (found.folder, "tiny", 1024, [])
    method = distillkit.make_pairs(str(tiny_teacher_folder), method="dmd", count=1000, steps=4, quiet=True)
    assert method.folder == found.folder and method.made == 0, "a run's own settings lead to the same set"


def test_a_method_and_guided_prompts_lead_where_its_run_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prompts.txt").write_text("a small red circle on white\na large blue square on black\n")
    given = {"prompts": str(tmp_path / "prompts.txt"), "guidance": 2.0, "count": 1, "steps": 1, "quiet": True}
    monkeypatch.setattr("distillkit.data.pair_store.SHARD_PAIRS", 2)
    found = distillkit.make_pairs("shapes", **given)
    assert found.made == 2
    from distillkit.contracts.source import Pairs
    from distillkit.jobs.planned import planned

    with planned(
        "dmd", "shapes", prompts=given["prompts"], guidance=2.0, pairs_count=1, pairs_steps=1, quiet=True,
        output_dir=tmp_path / "run",
    ) as plan:  # fmt: skip
        source = plan.job().sources[Pairs]
        assert source.store.folder == found.folder and source.plan().evaluations == 0


def test_the_plan_for_a_teacher_that_is_not_here_downloads_nothing(inside, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    # With 56 million parameters it takes long; that it is asked for is enough here.
    monkeypatch.setattr("distillkit.jobs.pairs.evaluation_seconds", lambda teacher, batch, device: 0.001)
    done = inside("pairs", "make", "--teacher", "edm-cifar10", "--method", "dmd", "--dry-run")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.replace("│", " ").split())
    for fragment in ("to be downloaded: edm-cifar10-cond, 223 MB", "heun, 18 steps", "3,503,360 teacher evaluations",
                     "by the hash of the teacher"):  # fmt: skip
        assert fragment in said
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["make", "--part", "9/8"], "write it as K/N"),
        (["make", "--count", "many"], "--count: write a number"),
        (["make", "--method", "dmd", "--solver", "magic"], ": --solver: "),
        (["make", "--method", "dmd2"], "reads no noise-image pairs"),
        (["make", "--prompts", "x.txt"], "takes no prompts"),
        (["make", "--set", "training.lr=1"], "name its --method"),
        (["verify"], "which pairs?"),
        (["verify", "nowhere"], "no pairs at nowhere"),
        (["verify", "nowhere", "--fix"], "hashed alone"),
        (["verify", "--teacher", "digits", "--guidance", "-1"], "guidance"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(inside, arguments, said, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.txt").write_text("a\n")
    ended = inside("pairs", *arguments)
    assert ended.returncode == 2 and said in ended.stderr.replace("\n", " "), ended
    assert not list(tmp_path.glob("cache/pairs/*"))


def test_parts():
    assert parse_part("3/8") == (3, 8) and parse_part(None) == (1, 1)
    for text in ("0/8", "8", "a/b", "3/-1", "1/9999999"):
        with pytest.raises(UsageError):
            parse_part(text)
