"""A mirror stands in for the hosts of published files: of teachers (tests/models/test_fetch.py), and of protocols."""

from urllib.parse import urlsplit

import numpy as np
import pytest

from distillkit.errors import DistillkitError
from distillkit.evaluation import reference_files
from distillkit.evaluation.extractor import INCEPTION_FILE, INCEPTION_URL
from distillkit.evaluation.presets import preset
from distillkit.files import sha256
from distillkit.mirror import obtain
from distillkit.progress import Quiet


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A folder with a protocol's files under the paths where they are published; the network is forbidden."""
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    statistics, network = (
        tmp_path / "host" / urlsplit(url).path[1:] for url in (preset("edm-cifar10").reference.url, INCEPTION_URL)
    )
    for path in (statistics, network):
        path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(statistics, mu=np.zeros(3), sigma=np.eye(3))
    network.write_bytes(b"a network")
    monkeypatch.setattr(reference_files, "INCEPTION_SHA256", sha256(network))
    return tmp_path / "host"


def test_a_protocols_files_come_from_a_mirror_without_the_network(host, monkeypatch):
    chosen = preset("edm-cifar10")
    with pytest.raises(DistillkitError, match="HF_HUB_OFFLINE forbids to download"):
        reference_files.fetch_files(chosen, Quiet(), lambda: 0)
    monkeypatch.setenv("DISTILLKIT_MIRROR", str(host))
    network, statistics = reference_files.fetch_files(chosen, Quiet(), lambda: 0)
    assert network.read_bytes() == b"a network"
    assert statistics.read_bytes() == (host / urlsplit(chosen.reference.url).path[1:]).read_bytes()


def test_what_has_another_hash_on_the_mirror_is_not_taken(host, monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILLKIT_MIRROR", f"{host}/")
    monkeypatch.setattr(reference_files, "INCEPTION_SHA256", "0" * 64)
    with pytest.raises(DistillkitError, match=r"(?s)expected sha256 0000.*found sha256 [1-9a-f]"):
        reference_files.fetch_files(preset("edm-cifar10"), Quiet(), lambda: 0)
    assert not (reference_files.evaluation_folder() / INCEPTION_FILE).exists()
    with pytest.raises(DistillkitError, match=r"the mirror has no .*/host/absent"):
        obtain("https://publisher.example/absent", tmp_path / "file", reporter=Quiet())
