"""Pickles of EDM's form become teachers, and the code that they carry is never executed."""

import json

import pytest
import torch
from safetensors.torch import save_file

from distillkit import ClassLabels, Condition, DistillkitError, UsageError, load_teacher
from distillkit.models.edm.catalog import CATALOG
from distillkit.models.foreign.read import read_foreign
from distillkit.models.foreign.records import Refused
from distillkit.models.store.convert import convert
from distillkit.progress import Quiet
from tests.conftest import denoiser_of
from tests.foreign.edm_format import write_network

NAMES = ["edm_adm_small", "edm_ddpmpp_small", "edm_ncsnpp_small"]


@pytest.fixture
def network(golden):
    """(denoiser with the golden's weights, its constructor arguments, golden)."""

    def make(name):
        reference = golden(name)
        denoiser = denoiser_of(reference.description["constructor"])
        denoiser.load_state_dict(reference.part("net."))
        return denoiser, reference.description["constructor"], reference

    return make


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_network_pickle_becomes_the_reference_denoiser(network, name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    denoiser, constructor, reference = network(name)
    path = write_network(tmp_path / "net.pkl", denoiser, constructor, protocol=protocol)
    teacher = load_teacher(str(path), Quiet())
    spec = teacher.spec
    assert (spec.shape, teacher.conditioner) == ((3, 16, 16), ClassLabels(classes=10, null_label=False))
    assert spec.network["kind"] == f"distillkit:{constructor['model_type']}" and "sha256 of the original" in spec.source
    labels = reference.tensors["class_labels"].argmax(1)
    out = teacher(reference.tensors["x"], reference.tensors["sigma"], Condition(labels=labels))
    assert (out - reference.tensors["denoised"]).abs().max() <= 1e-4 * reference.tensors["denoised"].abs().max()
    assert not (tmp_path / "canary").exists(), "the source in the file was executed"


def test_conversion_happens_once_and_needs_the_pickle_no_more(network, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    path = write_network(tmp_path / "net.pkl", *network("edm_adm_small")[:2])
    load_teacher(str(path), Quiet())
    (folder,) = (tmp_path / "cache" / "teachers").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "teacher.json"]
    assert "reduce" not in (folder / "teacher.json").read_text() and json.loads((folder / "teacher.json").read_text())
    monkeypatch.setattr("distillkit.models.store.reference.convert", None)
    load_teacher(str(path), Quiet())
    path.unlink()
    assert load_teacher(str(folder)).spec.shape == (3, 16, 16)


@pytest.mark.parametrize("where", ["ema", "net", "model"])
def test_the_network_is_found_where_programs_keep_it(network, where, tmp_path):
    denoiser, constructor, _ = network("edm_adm_small")
    path = write_network(tmp_path / "net.pkl", denoiser, constructor, where=where)
    assert convert(path, tmp_path / "out", name="x").conditioner["classes"] == 10


@pytest.mark.parametrize("kind", ["VPPrecond", "VEPrecond", "iDDPMPrecond"])
def test_other_preconditionings_are_refused_by_name(network, kind, tmp_path):
    denoiser, constructor, _ = network("edm_adm_small")
    path = write_network(tmp_path / "net.pkl", denoiser, constructor, class_name=kind)
    with pytest.raises(Refused, match=f"{kind}.*EDMPrecond"):
        convert(path, tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"label_dim": 7}, r"map_label"),
        ({"img_channels": 1}, r"differences"),
        ({"channel_mult": [1, 2, 2]}, r"missing: "),
        ({"num_blocks": 1}, r"not in the network: "),
        ({"model_type": "StyleUNet"}, r"StyleUNet"),
        ({"made_up": 3}, r"made_up"),
        ({"img_resolution": "large"}, r"incomplete"),
        ({"dropout": {"nested": 1}}, r"dropout is not a plain value"),
    ],
)
def test_arguments_that_do_not_fit_the_weights_are_named(network, change, fragment, tmp_path):
    denoiser, constructor, _ = network("edm_adm_small")
    path = write_network(tmp_path / "net.pkl", denoiser, {**constructor, **change})
    with pytest.raises(DistillkitError, match=fragment):
        convert(path, tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_named(network, tmp_path):
    denoiser, constructor, _ = network("edm_adm_small")
    with torch.no_grad():
        denoiser.model.out_conv.bias[0] = torch.nan
    path = write_network(tmp_path / "net.pkl", denoiser, constructor)
    with pytest.raises(DistillkitError, match=r"out_conv\.bias holds NaN"):
        convert(path, tmp_path / "out", name="x")


@pytest.mark.parametrize("kind", ["zip", "legacy", "nested", "wrapped", "inner", "safetensors", "half"])
def test_state_dicts_need_to_be_told_whose_network_they_are_for(network, kind, tmp_path):
    denoiser, constructor, reference = network("edm_adm_small")
    like = convert(write_network(tmp_path / "net.pkl", denoiser, constructor), tmp_path / "like", name="like")
    state = denoiser.state_dict()
    path = tmp_path / "weights.bin"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "half":
        torch.save({name: value.half() for name, value in state.items()}, path)
    elif kind == "wrapped":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    elif kind == "inner":
        torch.save(denoiser.model.state_dict(), path)
    elif kind == "nested":
        torch.save({"state_dict": state, "step": 3, "args": {"lr": 1e-4, "betas": (0.9, 0.99)}}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UsageError, match="--like"):
        convert(path, tmp_path / "out", name="x")
    convert(path, tmp_path / "out", name="x", like=like)
    teacher = load_teacher(str(tmp_path / "out"))
    out = teacher(reference.tensors["x"], reference.tensors["sigma"], Condition())
    tolerance = 2e-2 if kind == "half" else 1e-4
    torch.testing.assert_close(out, reference.tensors["denoised_no_label"], rtol=tolerance, atol=tolerance)


def test_weights_of_another_network_are_refused_with_the_likely_one(tmp_path):
    digits = load_teacher("digits")
    torch.save(digits.denoiser.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(
        DistillkitError, match=r"do not fit the network of edm-cifar10-cond .*\n(.*\n)*They fit the network of digits"
    ):
        convert(tmp_path / "weights.pt", tmp_path / "out", name="x", like=CATALOG["edm-cifar10-cond"].spec)


def test_numpy_arrays_of_reference_statistics_are_read(tmp_path):
    import pickle

    import numpy as np

    mu, sigma = np.arange(4.0), np.asfortranarray(np.arange(16.0).reshape(4, 4))
    for protocol in (3, 4, 5):
        (tmp_path / "ref.pkl").write_bytes(pickle.dumps({"fid": {"mu": mu, "sigma": sigma}}, protocol=protocol))
        value = read_foreign(tmp_path / "ref.pkl").value["fid"]
        assert np.array_equal(value["mu"].value, mu) and np.array_equal(value["sigma"].value, sigma)
