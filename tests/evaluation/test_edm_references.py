"""Reference statistics of EDM's zip files are those of EDM's own program, and go both ways between the two."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distillkit.evaluation.extractor import INCEPTION_FILE, Inception
from distillkit.evaluation.reference import load_reference
from distillkit.files import sha256
from tests.evaluation.edm_zips import pictures, write_network, write_zip

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "edm_reference.json").read_text())
COUNT, SHOWN = GOLDEN["images"], GOLDEN["entries"]


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """The cache's evaluation folder, with a network of 2,048 features in the place of Inception."""
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    network = write_network(tmp_path / "cache" / "evaluation")
    monkeypatch.setattr(Inception.__init__, "__defaults__", (sha256(network),))
    return network.parent


def of_edms_program(path, network):
    """Mean and covariance by the formulas of fid.py: sums of f and f f^T in float64, divided by N and N - 1."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith(".json"))
        images = [np.array(Image.open(archive.open(name))) for name in names]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = torch.jit.load(network)(pixels, return_features=True).double()
    mean = features.sum(0) / len(features)
    return mean, (features.T @ features - len(features) * mean.outer(mean)) / (len(features) - 1)


@pytest.mark.parametrize(("kind", "channels"), [("rgb", 3), ("grey", 1)])
def test_statistics_are_those_of_edms_program_and_its_program_reads_them(evaluation, inside, tmp_path, kind, channels):
    write_zip(tmp_path / "data.zip", pictures(COUNT, channels=channels), backwards=kind == "rgb")
    made = inside("reference", "make", "--data", "data.zip", "--protocol", "edm-cifar10", "--batch", "10")
    assert made.returncode == 0, made.stderr
    path = evaluation / "edm-cifar10-32x32.npz"
    assert f"{COUNT} images, 2,048 features, in {path}" in made.stdout
    assert "note: edm-cifar10 is of 50,000 images (edm/cifar10-32x32), and these are 24" in made.stdout
    # As EDM's program reads it.
    found, wanted = dict(np.load(path)), GOLDEN[kind]
    assert found["mu"].dtype == found["sigma"].dtype == np.float64 and found["sigma"].shape == (2048, 2048)
    np.testing.assert_allclose(found["mu"][:SHOWN], wanted["mu"], rtol=1e-6)
    scale = np.abs(wanted["sigma"]).max()
    np.testing.assert_allclose(found["sigma"][:SHOWN, :SHOWN], wanted["sigma"], rtol=1e-6, atol=1e-7 * scale)
    assert found["mu"].sum() == pytest.approx(wanted["mu_sum"], rel=1e-6)
    assert np.trace(found["sigma"]) == pytest.approx(wanted["trace"], rel=1e-6)
    assert np.linalg.norm(found["sigma"]) == pytest.approx(wanted["norm"], rel=1e-6)
    # And the protocol takes it, once its hash is recorded.
    reference = load_reference(path, count=50_000)
    assert reference.count == COUNT and f"sha256 of the numbers {reference.spec.sha256}" in made.stdout
    command = made.stdout.partition("next: distillkit ")[2].split()
    assert inside(*command).returncode == 0
    shown = inside("protocols", "show", "edm-cifar10")
    assert f"{COUNT}" in shown.stdout and "not ready" not in shown.stdout, shown.stdout


def test_jpeg_images_have_the_statistics_of_edms_formulas(evaluation, inside, tmp_path):
    write_zip(tmp_path / "data.zip", pictures(30), "jpg")
    made = inside("reference", "make", "--data", "data.zip", "--extractor", "inception", "-o", "r.safetensors")
    assert made.returncode == 0 and "the file is a protocol" in made.stdout, made.stderr
    found = load_reference(tmp_path / "r.safetensors")
    mean, covariance = of_edms_program(tmp_path / "data.zip", evaluation / INCEPTION_FILE)
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.covariance, covariance, rtol=1e-6, atol=1e-6 * float(covariance.abs().max()))


def test_statistics_of_edms_program_become_a_protocol(evaluation, inside, tmp_path):
    data = write_zip(tmp_path / "data.zip", pictures(COUNT))
    mean, covariance = of_edms_program(data, evaluation / INCEPTION_FILE)
    np.savez(tmp_path / "edm.npz", mu=mean.numpy(), sigma=covariance.numpy())
    convert = ("reference", "convert", "edm.npz", "--extractor", "inception", "-o", "edm.safetensors")
    unsaid = inside(*convert)
    assert unsaid.returncode == 1 and "of how many images" in unsaid.stderr and "convert" in unsaid.stderr
    assert not (tmp_path / "edm.safetensors").exists()
    done = inside(*convert, "--count", COUNT, "--name", "mine")
    assert done.returncode == 0 and "--protocol edm.safetensors" in done.stdout, done.stderr
    converted = load_reference(tmp_path / "edm.safetensors")
    assert (converted.id, converted.count, converted.making.extractor) == ("mine", COUNT, "inception")
    assert converted.making.spec.weights_sha256 == sha256(evaluation / INCEPTION_FILE)
    assert torch.equal(converted.mean, mean) and torch.equal(converted.covariance, covariance)
    shown = inside("protocols", "show", "edm.safetensors")
    assert shown.returncode == 0 and "inception-2015-12-05/pool3" in shown.stdout, shown.stderr


def test_what_cannot_be_converted_is_one_message(evaluation, inside, tmp_path):
    np.savez(tmp_path / "small.npz", mu=np.zeros(4), sigma=np.eye(4), count=9)
    np.savez(tmp_path / "strange.npz", mu=np.zeros(4), sigma=np.eye(4), count=np.zeros(3))
    for arguments, code, said in (
        (["small.npz", "--extractor", "rgb32cnn"], 2, "small.npz has 4 features and rgb32cnn 128"),
        (["small.npz", "--extractor", "rgb32cnn", "--count", "10"], 2, "says that it is of 9 images"),
        (["strange.npz", "--extractor", "rgb32cnn"], 1, "strange.npz is damaged or holds no reference statistics"),
        (["small.npz", "--extractor", "net.pt"], 2, "--extractor net.pt: an extractor by name is needed"),
        (["r.safetensors", "--extractor", "inception"], 2, "r.safetensors is a file of distillkit's already"),
        (["absent.npz", "--extractor", "rgb32cnn"], 2, "absent.npz: there are no reference statistics there"),
    ):
        done = inside("reference", "convert", *arguments, "-o", "out.safetensors")
        assert done.returncode == code and said in done.stderr, (arguments, done.stderr)
    done = inside("reference", "convert", "small.npz", "--extractor", "rgb32cnn", "-o", "out.npz")
    assert done.returncode == 2 and "a protocol is a .safetensors file" in done.stderr
    assert not list(tmp_path.glob("out.*"))


def test_what_cannot_be_written_is_said_before_anything_is_extracted(evaluation, inside, tmp_path):
    write_zip(tmp_path / "data.zip", pictures(4))
    write_zip(tmp_path / "one.zip", pictures(1))
    make = ("reference", "make", "--data", "data.zip")
    place = evaluation / "edm-cifar10-32x32.npz"
    place.write_bytes(b"another's")
    for arguments, said in (
        (["--protocol", "edm-cifar10"], f"edm-cifar10 has its statistics already, in {place}"),
        (["--extractor", "inception"], "name the file to write: --output"),
        (["--extractor", "inception", "-o", "r.txt"], "written as .safetensors or .npz"),
        (["--extractor", "inception", "-o", "r.npz", "--keep-features"], ".npz files hold no features"),
        (["--extractor", "rgb32cnn", "-o", "r.npz", "--data", "one.zip"], "--data one.zip: a covariance is of two"),
    ):
        done = inside(*make, *arguments)
        assert done.returncode == 2 and said in done.stderr, (arguments, done.stderr)
    assert not (tmp_path / "r.npz").exists()
    failed = inside("evaluate", "digits", "--protocol", "r.npz")
    assert failed.returncode == 2 and "give --reference r.npz and --extractor NAME" in failed.stderr
    assert place.read_bytes() == b"another's" and not (tmp_path / "cache" / "evaluations").exists()
