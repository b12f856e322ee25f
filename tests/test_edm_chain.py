"""The page on CIFAR-10 and ImageNet-64: its commands run in their order, on small stand-ins for what is downloaded."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from distillkit.evaluation.extractor import INCEPTION_FILE, Inception
from distillkit.evaluation.protocol import ExtractorSpec
from distillkit.evaluation.record import read_record
from tests.conftest import denoiser_of
from tests.evaluation.edm_zips import pictures, write_zip
from tests.foreign.edm_format import network_bytes
from tools.edm_chain_table import PAGE, TOOL, text
from tools.pages import between

TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [
    command
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    for command in re.findall(r"^\$ distillkit (.*)$", block.replace("\\\n   ", ""), re.MULTILINE)
]

SHORT = {
    "pairs make": "--count 8 --steps 2 --device cpu --quiet",
    "run dmd --teacher": "--duration 8 --batch 4 --pairs-count 8 --pairs-steps 2 --distance l2 --device cpu "
    "--evaluation-samples 8 --evaluate-samples 8 --precision fp32",
    "run dmd2": "--duration 8 --batch 4 --device cpu --evaluation-samples 8 --evaluate-samples 8 --precision fp32",
    "evaluate": "--samples 8 --device cpu --quiet",
    "sample": "--device cpu", "teachers sample": "--device cpu --steps 2",
}  # fmt: skip
"""What is added to commands that begin so."""

NETWORKS = {
    "edm-cifar10-32x32-cond-vp": {
        "img_resolution": 32, "img_channels": 3, "label_dim": 10, "model_type": "SongUNet", "model_channels": 4,
        "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [], "augment_dim": 9,
    },
    "edm-imagenet-64x64-cond-adm": {
        "img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_type": "DhariwalUNet", "model_channels": 4,
        "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
    },
}  # fmt: skip


class Means(torch.nn.Module):
    """Features by means of 2 x 2 patches, 12 numbers."""

    def forward(self, pixels):
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """What the page downloads, small: teachers on a mirror; Inception and statistics in the cache, as if they had come.
    And the zip files that EDM's program makes."""
    cache, host = tmp_path / "cache", tmp_path / "host" / "edm" / "pretrained"
    monkeypatch.setenv("DISTILLKIT_CACHE", str(cache))
    monkeypatch.setenv("DISTILLKIT_MIRROR", str(tmp_path / "host"))
    monkeypatch.setenv("COLUMNS", "200")
    host.mkdir(parents=True)
    torch.manual_seed(0)
    for stem, network in NETWORKS.items():
        (host / f"{stem}.pkl").write_bytes(network_bytes(denoiser_of({**network, "sigma_data": 0.5}), network))

    def small(self, folder, mode, weights_sha256=""):
        torch.nn.Module.__init__(self)
        assert (folder / INCEPTION_FILE).is_file()
        self.network, self._resize = Means(), None
        self.spec = ExtractorSpec(id="small/means", weights_sha256="0" * 64, dim=12, input="RGB 0..255")

    monkeypatch.setattr(Inception, "__init__", small)
    (cache / "evaluation").mkdir(parents=True)
    (cache / "evaluation" / INCEPTION_FILE).touch()
    for name in ("edm-cifar10-32x32", "edm-imagenet-64x64"):
        np.savez(cache / "evaluation" / f"{name}.npz", mu=np.full(12, 127.0), sigma=np.eye(12) * 400 + 100)
    write_zip(tmp_path / "cifar10-32x32.zip", pictures(24))
    write_zip(tmp_path / "imagenet-64x64.zip", pictures(24, 64))


def test_the_page_runs(published, inside, tmp_path):
    ran, shown = [], ""
    for command in COMMANDS:
        words = shlex.split(command)
        if "..." in words:  # the hash that the command before has shown
            words[words.index("...")] = re.search(r"--sha256 ([0-9a-f]{64})", shown)[1]
        beginning = max((begin for begin in SHORT if command.startswith(begin)), key=len, default="")
        done = inside(*words, *shlex.split(SHORT.get(beginning, "")))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        shown = done.stdout
        if command.startswith("run dmd --teacher") and "--dry-run" not in command:
            assert "making noise-image pairs" not in shown, "those of `pairs make` are found"
        ran.append(command)
    assert len(ran) >= 24
    labels = [read_record(path).label for path in sorted((tmp_path / "runs").glob("*/records/*.json"))]
    assert len(labels) >= 5 and set(labels) == {"FD[small/means]-8"}
    protocols = {read_record(path).protocol.name for path in (tmp_path / "runs").glob("*/records/*.json")}
    assert {"edm-cifar10", "edm-imagenet64"} <= protocols and len(protocols) == 3
    assert set(np.load(tmp_path / "imagenet64.npz")) == {"mu", "sigma", "count"}
    assert (tmp_path / "cifar10-student" / "model_index.json").is_file()
    assert "edm-imagenet64" in shown and not (tmp_path / "cache" / "teachers" / "edm-imagenet64").exists()


def test_the_page_is_whole_and_its_table_is_the_formulas():
    assert between(PAGE, TOOL) == text(), "run `python -m tools.edm_chain_table`"
    starts = ("teachers fetch", "protocols fetch", "pairs make", "run dmd", "evaluate", "reference make")
    for start in starts:
        assert sum(command.startswith(start) for command in COMMANDS) >= 2, start
    assert Path("mkdocs.yml").resolve() and "cifar10-imagenet64.md" in (PAGE.parents[1] / "mkdocs.yml").read_text()
