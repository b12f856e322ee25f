"""The teachers on this machine: listed with their size and where they came from, shown, and removed from the cache."""

import json
import re
import shutil

import pytest
import torch

from distillkit.downloads import part_of
from distillkit.locks import held
from distillkit.models.store import fetch
from distillkit.models.store.resolve import load_teacher, resolve
from distillkit.progress import Terminal
from tests.conftest import denoiser_of
from tests.foreign.edm_format import network_bytes

NAME, STEM = "edm-cifar10-uncond", "edm-cifar10-32x32-uncond-vp"
SMALL = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_type": "SongUNet", "model_channels": 8,
         "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "augment_dim": 9}  # fmt: skip


@pytest.fixture(scope="module")
def pickle():
    torch.manual_seed(0)
    return network_bytes(denoiser_of({**SMALL, "sigma_data": 0.5}), SMALL)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path / "cache"


@pytest.fixture
def published(cache, tmp_path, pickle, inside, monkeypatch, tiny_teacher_folder):
    """The folder of a catalogued teacher as `fetch` makes it. The network is a small one, of another size than the
    catalogue's, so the catalogue's size is not compared."""
    monkeypatch.setattr("distillkit.models.store.convert._compare", lambda path, spec, expected: None)
    host = tmp_path / "host" / "edm" / "pretrained"
    host.mkdir(parents=True)
    (host / f"{STEM}.pkl").write_bytes(pickle)
    monkeypatch.setenv("DISTILLKIT_MIRROR", str(tmp_path / "host"))
    assert inside("teachers", "fetch", NAME).returncode == 0
    return cache / "teachers" / NAME


@pytest.fixture
def converted(cache, tmp_path, pickle):
    """The folder in the cache of a file that was used as a teacher."""
    (tmp_path / "snapshot.pkl").write_bytes(pickle)
    load_teacher(str(tmp_path / "snapshot.pkl"))
    [folder] = (cache / "teachers").glob("snapshot-*")
    return folder


@pytest.fixture
def repository(tmp_path, cache):
    """A diffusers pipeline in the hub's cache, beside a language model."""
    hub, commit = tmp_path / "hub", "a" * 40
    for name, files in {
        "models--org--tiny-ddpm": {
            "model_index.json": '{"_class_name": "DDPMPipeline"}', "unet/config.json": "{}",
            "unet/diffusion_pytorch_model.safetensors": "x" * 2_000_000,
            "README.md": "---\ntags: [x]\nlicense: apache-2.0\n---\n# Tiny",
        },
        "models--org--language": {"config.json": '{"model_type": "bert"}', "model.safetensors": "x"},
        "models--org--described": {"model_index.json": '{"_class_name": "DDPMPipeline"}', "unet/config.json": "{}"},
    }.items():  # fmt: skip
        for file, text in files.items():
            path = hub / name / "snapshots" / commit / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (hub / name / "refs").mkdir()
        (hub / name / "refs" / "main").write_text(commit)
    return hub


def cells(text):
    """The rows of the table, with wrapped lines joined; a size begins one."""
    rows = []
    for line in text.splitlines():
        if line.startswith("│"):
            parts = [part.strip() for part in line.strip("│").split("│")]
            if parts[1]:
                rows.append(parts)
            else:
                rows[-1] = [before + part for before, part in zip(rows[-1], parts, strict=True)]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_what_is_here_is_listed_with_size_licence_and_origin(
    published, converted, repository, inside, monkeypatch, columns
):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("distillkit.cli.closing.console", lambda: Terminal(width=columns))
    listed = inside("teachers")
    assert listed.returncode == 0, listed.stderr
    assert max(len(line) for line in listed.stdout.splitlines() if line.startswith(("│", "┃"))) <= columns
    found = cells(listed.stdout.partition("On this machine")[2])
    size, about = found[NAME]
    assert re.fullmatch(r"0\.\d MB", size) and about.startswith("3 x 8 x 8")
    assert "CC BY-NC-SA 4.0" in about and f"{STEM}.pkl" in about and re.search(r"fetched ?20\d\d-", about)
    _, about = found[converted.name]
    assert "converted" in about and "not recorded" in about and "snapshot.pkl" in about
    assert found["hf:org/tiny-ddpm"][0] == "2.0 MB"
    assert found["hf:org/tiny-ddpm"][1] == "DDPMPipelineapache-2.0https://huggingface.co/org/tiny-ddpm"
    assert "hf:org/language" not in found and "hf:org/described" not in found


def test_the_name_in_the_list_is_a_teachers_name_and_show_says_the_same(converted, published, inside):
    assert load_teacher(converted.name).spec.shape == (3, 8, 8)
    shown = inside("teachers", "show", converted.name)
    said = " ".join(shown.stdout.replace("│", " ").split())
    assert shown.returncode == 0 and "on this disk" in said and "snapshot.pkl (sha256" in said, shown.stderr
    said = inside("teachers", "show", NAME).stdout
    assert "on this disk" in said and "CC BY-NC-SA 4.0" in said and "nvlabs" in said
    assert "on this disk" not in inside("teachers", "show", "digits").stdout


def test_a_published_teacher_is_removed_and_its_hash_is_kept(published, inside, cache, tmp_path):
    part = part_of(cache / "downloads" / f"{STEM}.pkl")
    part.write_bytes(b"x" * 4_000_000)
    lock = json.loads((cache / "teachers" / "lock.json").read_text())
    unasked = inside("teachers", "remove", STEM)
    assert unasked.returncode == 2 and "--yes" in unasked.stderr and published.is_dir() and part.exists()
    done = inside("teachers", "remove", STEM, "--yes")
    assert done.returncode == 0 and str(published) in done.stdout, done.stderr
    freed = re.search(r"removed; ([\d.]+) MB freed", done.stdout)
    assert float(freed[1]) >= 4.0 and not published.exists() and not part.exists()
    assert json.loads((cache / "teachers" / "lock.json").read_text()) == lock and not resolve(NAME).available
    again = inside("teachers", "remove", NAME, "--yes")
    assert again.returncode == 2 and "there is nothing to remove" in again.stderr
    host = tmp_path / "host" / "edm" / "pretrained" / f"{STEM}.pkl"
    host.write_bytes(host.read_bytes() + b"\0")
    refused = inside("teachers", "fetch", NAME)
    assert refused.returncode == 1 and "not the file that was expected, and was not taken" in refused.stderr
    assert lock[NAME]["sha256"] in refused.stderr and "remove the hash from" in refused.stderr
    assert not (cache / "downloads" / f"{STEM}.pkl").exists() and not published.exists()


@pytest.mark.parametrize(("answer", "stays"), [("n\n", True), ("y\n", False)])
def test_it_asks_where_somebody_is_there(published, inside, monkeypatch, answer, stays):
    class Terminal:
        def isatty(self):
            return True

        def readline(self, *size):
            return answer

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda text: answer.strip())
    done = inside("teachers", "remove", NAME)
    assert done.returncode == 0 and published.is_dir() == stays, done.stderr
    assert ("nothing was removed" in done.stdout) == stays


@pytest.mark.parametrize("by", ["file", "name", "folder"])
def test_a_converted_teacher_is_removed_and_its_file_stays(converted, inside, tmp_path, by):
    name = {"file": "snapshot.pkl", "name": converted.name, "folder": converted}[by]
    done = inside("teachers", "remove", name, "--yes")
    assert done.returncode == 0 and not converted.exists() and (tmp_path / "snapshot.pkl").exists(), done.stderr


def test_what_is_not_distillkits_to_remove_is_refused(
    published, converted, repository, inside, cache, tmp_path, tiny_teacher_folder
):
    mine = shutil.copytree(tiny_teacher_folder, tmp_path / "mine")
    (cache / "teachers" / "linked").symlink_to(mine)
    (tmp_path / "other.pkl").write_bytes(b"other")
    for name, said in (
        ("digits", "digits comes with"), ("mine", "is outside of the cache"), ("linked", "is a link"),
        (cache / "teachers" / "linked", "is a link"),
        ("hf:org/tiny-ddpm", "`hf cache rm model/org/tiny-ddpm`"),
        ("other.pkl", "the cache holds nothing"), ("edm-ffhq64", "there is nothing to remove"), ("..", "outside"),
        ("edm-cifar99", "unknown teacher"),
    ):  # fmt: skip
        done = inside("teachers", "remove", name, "--yes")
        assert done.returncode == 2 and said in done.stderr, (name, done.stderr)
    (published / "notes.txt").write_text("mine")
    done = inside("teachers", "remove", NAME, "--yes")
    assert done.returncode == 1 and "holds notes.txt" in done.stderr
    assert {path.name for path in published.iterdir()} == {"model.safetensors", "teacher.json", "notes.txt"}
    assert converted.is_dir() and len(list(mine.iterdir())) == 2 and (repository / "models--org--tiny-ddpm").is_dir()


def test_one_that_another_process_is_at_work_on_stays(published, inside):
    with held(fetch.lock_of(NAME), lambda: None):
        done = inside("teachers", "remove", NAME, "--yes")
    assert done.returncode == 1 and "another process is at work on it; try again" in done.stderr and published.is_dir()


def test_a_damaged_folder_in_the_cache_is_named_and_the_rest_is_listed(published, converted, inside):
    (converted / "teacher.json").write_text("{")
    listed = inside("teachers")
    assert listed.returncode == 0 and f"left alone: {converted}: damaged" in listed.stdout and NAME in listed.stdout
