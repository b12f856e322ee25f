"""`evaluate`, `protocols`, `reference`, `compare` through the real entry point."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import distillkit
from distillkit.embedded.digits.data import load_digits
from distillkit.evaluation.record import read_record
from distillkit.students.load import load_student
from tests.conftest import HANG, command


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_teacher_folder):
    """One short run's folder; tests take a copy."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    distillkit.distil(
        "dmd", teacher=tiny_teacher_folder, distance="l2", duration=320, batch=16, pairs_count=64, lr=1e-3,
        evaluation_samples=60, evaluate_samples=60, output_dir=folder, quiet=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def student(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return "run"


def pictures(folder, images, size=None):
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        picture = Image.fromarray(np.asarray(image))
        (picture.resize(size) if size else picture).save(folder / f"{index:04d}.png")
    return str(folder)


def figures(path):
    return {label: figure.value for label, figure in read_record(path).figures.items()}


def test_a_student_is_measured_and_its_record_compared(inside, student, tmp_path, tiny_teacher_folder):
    done = inside("evaluate", student, "--samples", "300", "--metrics", "fd,kid,prdc,is,memorisation")
    assert done.returncode == 0, done.stderr
    assert "FD[digits8cnn/fc64]-300" in done.stdout and "Not Inception FID" in " ".join(done.stdout.split())
    (path,) = (tmp_path / "run" / "records").glob("*-300-*.json")
    record = read_record(path)
    assert record.nfe == 1 and record.subject.method == "dmd" and record.subject.kind == "student"
    assert record.subject.weights_sha256 == load_student(tmp_path / "run").description.weights_sha256
    assert len(record.figures) == 8 and len(record.samples_sha256) == 64
    assert record.figures[record.label].standard_error > 0
    teacher = inside(
        "evaluate", tiny_teacher_folder, "--protocol", "digits8", "--samples", "300", "--nfe", "1,5", "-o", "t"
    )
    assert teacher.returncode == 0, teacher.stderr
    records = [read_record(p) for p in sorted((tmp_path / "t").iterdir())]
    assert [r.nfe for r in records] == [1, 5]
    compared = inside("compare", path, "t")
    assert compared.returncode == 0, compared.stderr
    assert record.protocol_id in compared.stdout and "±" in compared.stdout and "best" in compared.stdout


def test_figures_do_not_depend_on_the_batch_and_seeds_are_disjoint(inside, student, tmp_path):
    for name, extra in (("a", ["--batch", "7"]), ("b", ["--batch", "300"]), ("c", ["--first-seed", "1000"])):
        done = inside("evaluate", student, "--samples", "100", "--output", f"{name}.json", "--quiet", *extra)
        assert done.returncode == 0, done.stderr
    a, b, c = (read_record(tmp_path / f"{name}.json") for name in "abc")
    assert a.protocol_id == b.protocol_id != c.protocol_id
    assert a.figures[a.label].value == pytest.approx(b.figures[b.label].value, rel=1e-4)
    mixed = inside("compare", "a.json", "c.json")
    assert mixed.returncode == 2 and "samples.first_seed: 1000, not 0" in mixed.stderr
    assert inside("compare", "a.json", "c.json", "--group").returncode == 0


def test_an_interrupted_measurement_goes_on_to_the_same_record(cli, start, tmp_path, tiny_teacher_folder):
    env = {"DISTILLKIT_CACHE": str(tmp_path / "cache")}
    arguments = ["evaluate", str(tiny_teacher_folder), "--protocol", "digits8", "--samples", "1000", "--batch", "20",
                 "--nfe", "19"]  # fmt: skip
    process = start(*arguments, "--output", "parts.json", env=env)
    deadline = time.monotonic() + HANG
    while not [p for p in (tmp_path / "cache").rglob("features.f32") if p.stat().st_size > 64 * 4 * 100]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) == 143
    assert "resumes" in process.stdout.read() and not (tmp_path / "parts.json").exists()
    again = cli(*arguments, "--output", "parts.json", env=env)
    assert again.returncode == 0 and "continuing with" in again.stdout, again.stderr
    whole = cli(*arguments, "--output", "whole.json", env=env)
    assert whole.returncode == 0 and "continuing with" not in whole.stdout
    a, b = read_record(tmp_path / "parts.json"), read_record(tmp_path / "whole.json")
    assert a.figures == b.figures and a.samples_sha256 == b.samples_sha256 and a.nfe == b.nfe == 19


def test_two_processes_measure_what_one_does(tmp_path, inside, together, tiny_teacher_folder):
    arguments = ["evaluate", str(tiny_teacher_folder), "--protocol", "digits8", "--samples", "203", "--nfe", "5"]
    assert inside(*arguments, "--output", "one.json").returncode == 0
    done = together(*command(*arguments, "--output", "two.json"))
    assert [one.returncode for one in done] == [0, 0], [one.stderr[-2000:] for one in done]
    one, two = read_record(tmp_path / "one.json"), read_record(tmp_path / "two.json")
    assert one.protocol_id == two.protocol_id and one.nfe == two.nfe == 5
    assert one.figures[one.label].value == pytest.approx(two.figures[two.label].value, rel=1e-4)


def test_given_images_are_measured_and_never_mixed_with_samples(inside, tmp_path):
    digits = load_digits()[0][:400, 0].numpy()
    pictures(tmp_path / "digits", digits)
    done = inside("evaluate", "digits", "--protocol", "digits8", "--output", "images.json")
    assert done.returncode == 0, done.stderr  # the folder wins over the teacher of that name
    record = read_record(tmp_path / "images.json")
    assert record.subject.kind == "images" and record.nfe is None and record.label.endswith("-400")
    assert record.protocol.samples.rng == "given images" and record.figures[record.label].value < 0.02


def test_images_are_saved_on_request(inside, student, tmp_path):
    for target in ("pngs", "all.npz"):
        done = inside("evaluate", student, "--samples", "30", "--batch", "8", "--save-images", target, "--quiet")
        assert done.returncode == 0, done.stderr
    saved = np.load(tmp_path / "all.npz")["arr_0"]
    assert saved.shape == (30, 8, 8, 1) and saved.dtype == np.uint8
    for index in (0, 17, 29):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "pngs" / f"{index:06d}.png")), saved[index, :, :, 0])


def test_few_samples_are_measured_with_a_warning_that_names_the_rank(inside, student):
    done = inside("evaluate", student, "--samples", "40", "--output", "few.json")
    assert done.returncode == 0 and "40 samples span at most 39 of 64 dimensions" in " ".join(done.stdout.split())


def test_own_reference_and_extractor(inside, student, tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6))
        torch.jit.script(network).save(str(tmp_path / "net.pt"))
        other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(63, 6))
        torch.jit.script(other).save(str(tmp_path / "other.pt"))
    pictures(tmp_path / "images", load_digits()[0][:200, 0].numpy())
    missing = inside("evaluate", student, "--extractor", "net.pt")
    assert missing.returncode == 1 and "made with another extractor" in missing.stderr
    wrong = inside("reference", "make", "--data", "images", "--extractor", "other.pt", "-o", "ref.safetensors")
    assert wrong.returncode == 1 and "does not take images" in wrong.stderr
    made = inside(
        "reference", "make", "--data", "images", "--protocol", "digits8", "-o", "ref.safetensors", "--keep-features"
    )
    assert made.returncode == 0, made.stderr
    assert "sha256 of the numbers" in made.stdout and load_file(tmp_path / "ref.safetensors")["features"].shape == (
        200,
        64,
    )
    done = inside(
        "evaluate", student, "--reference", "ref.safetensors", "--samples", "100", "--metrics", "fd,kid", "-o", "o.json"
    )
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "o.json").protocol.reference.count == 200


@pytest.fixture
def external(tmp_path, monkeypatch):
    """A cache in which the protocol edm-cifar10 finds a small stand-in for Inception and its reference."""
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evaluation"


def test_external_reference_stops_at_first_use_and_shows_the_hash_to_pin(inside, external):
    from distillkit.evaluation import presets, reference_files

    asked = inside("protocols", "show", "edm-cifar10")
    assert (
        asked.returncode == 0
        and "not ready" in asked.stdout
        and "edm-cifar10-32x32.npz" in asked.stdout.replace("\n", "")
    )
    external.mkdir(parents=True)
    np.savez(external / "edm-cifar10-32x32.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    first = inside("evaluate", "digits", "--protocol", "edm-cifar10")
    assert first.returncode == 1 and "no recorded hash yet" in first.stderr
    found = first.stderr.split("--sha256 ")[1].split()[0]
    assert inside("protocols", "pin", "edm-cifar10", "--sha256", found).returncode == 0
    assert reference_files.reference_of(presets.preset("edm-cifar10")).spec.sha256 == found
    np.savez(external / "edm-cifar10-32x32.npz", mu=np.ones(2048), sigma=np.eye(2048))
    changed = inside("evaluate", "digits", "--protocol", "edm-cifar10")
    assert changed.returncode == 1 and "not the reference that was recorded" in changed.stderr
    np.savez(external / "edm-cifar10-32x32.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    network = inside("evaluate", "digits", "--protocol", "edm-cifar10")
    assert network.returncode == 1 and "the Inception network is not here" in network.stderr
    (external / "inception-2015-12-05.pt").write_bytes(b"something else")
    wrong = inside("evaluate", "digits", "--protocol", "edm-cifar10")
    assert wrong.returncode == 1 and "It was not loaded" in wrong.stderr


def test_protocol_files_are_fetched_and_verified(inside, external, tmp_path, monkeypatch):
    from distillkit.evaluation import presets, reference_files
    from tests.models.bad_server import serving

    (tmp_path / "host").mkdir()
    np.savez(tmp_path / "host" / "ref.npz", mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "host" / "inception.pt").write_bytes(b"not the network")
    with serving(tmp_path / "host", "cut") as server:
        chosen = presets.preset("edm-cifar10")
        moved = chosen.model_copy(
            update={"reference": chosen.reference.model_copy(update={"url": f"{server.address}/ref.npz"})}
        )
        monkeypatch.setattr(presets, "preset", lambda name: moved)
        monkeypatch.setattr(reference_files, "INCEPTION_URL", f"{server.address}/inception.pt")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        refused = inside("protocols", "fetch", "edm-cifar10")
        assert refused.returncode == 1 and "expected sha256 f58cb9b6" in refused.stderr
        external.joinpath("inception-2015-12-05.pt").write_bytes(b"placed by hand")
        fetched = inside("protocols", "fetch", "edm-cifar10")
    assert fetched.returncode == 0 and "--sha256" in fetched.stdout, fetched.stderr
    assert (external / "edm-cifar10-32x32.npz").read_bytes() == (tmp_path / "host" / "ref.npz").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "fragments"),
    [
        (["evaluate", "absent"], 2, ["unknown teacher 'absent'", "hf:ORG/REPO"]),
        (["evaluate", "digits", "--protocol", "digit8"], 2, ["Did you mean 'digits8'?", "distillkit protocols"]),
        (["evaluate", "digits", "--protocol", "none"], 2, ["--protocol none is for runs"]),
        (["evaluate", "digits", "--nfe", "2"], 2, ["--nfe 2", "odd"]),
        (["evaluate", "digits", "--nfe", "two"], 2, ["--nfe two"]),
        (["evaluate", "digits", "--nfe", "5", "--guidance", "2"], 2, ["--guidance"]),
        (["evaluate", "digits", "--metrics", "fid"], 2, ["unknown metric 'fid'", "kid"]),
        (["evaluate", "digits", "--precision", "fp8"], 2, ["--precision fp8"]),
        (["evaluate", "digits", "--reference", "absent.npz"], 2, ["absent.npz"]),
        (["evaluate", "digits", "--extractor", "vgg"], 2, ["unknown extractor 'vgg'", "inception-clean"]),
        (["evaluate", "digits", "--extractor", "absent.pt"], 2, ["absent.pt", "TorchScript"]),
        (["evaluate", "digits", "--nfe", "5,9", "--output", "x.json"], 2, ["name a folder"]),
        (["evaluate", "empty"], 2, ["no images in empty"]),
        (["evaluate", "coloured", "--protocol", "digits8"], 1, ["digits8cnn judges digits"]),
        (["evaluate", "coloured"], 2, ["no protocol is known"]),
        (["protocols", "show", "edm-cifar100"], 2, ["Did you mean 'edm-cifar10'?"]),
        (["protocols", "pin", "edm-cifar10", "--sha256", "abc"], 2, ["64 hexadecimal"]),
        (["protocols", "pin", "digits8", "--sha256", "0" * 64], 2, ["digits8", "no files"]),
        (["reference", "make", "--data", "empty", "--protocol", "digits8", "-o", "r.safetensors"], 2, ["no images in"]),
        (["reference", "make", "--data", "coloured", "-o", "r.safetensors"], 2, ["either --protocol or --extractor"]),
        (["reference", "make", "--data", "x", "--protocol", "digits8", "-o", "r.json"], 2, [".safetensors"]),
        (["compare", "absent.json"], 2, ["no such record"]),
        (["compare", "empty"], 2, ["holds no records"]),
        (["compare", "text.json"], 1, ["text.json", "JSON"]),
    ],
    ids=lambda v: " ".join(v[:4]) if isinstance(v, list) and v[0] in ("evaluate", "protocols", "reference") else "",
)  # fmt: skip
def test_messages_and_exit_codes(inside, tmp_path, arguments, code, fragments):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("hello")
    pictures(tmp_path / "coloured", np.zeros((3, 9, 9, 3), np.uint8))
    before = sorted(tmp_path.rglob("*"))
    done = inside(*arguments)
    assert done.returncode == code, done.stderr + done.stdout
    for fragment in fragments:
        assert fragment in done.stderr
    assert "Traceback" not in done.stderr and sorted(tmp_path.rglob("*")) == before


def test_images_of_two_sizes_and_unreadable_ones_are_named(inside, tmp_path):
    pictures(tmp_path / "mixed", load_digits()[0][:3, 0].numpy())
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "mixed" / "z.png")
    done = inside("evaluate", "mixed", "--protocol", "digits8")
    assert done.returncode == 2 and "9 x 9" in done.stderr and "z.png" in done.stderr
    (tmp_path / "mixed" / "z.png").write_bytes(b"no picture")
    done = inside("evaluate", "mixed", "--protocol", "digits8", "--batch", "4")
    assert done.returncode == 1 and "mixed/z.png" in done.stderr


def test_a_student_whose_weights_are_not_finite_is_named(inside, student, tmp_path):
    folder = tmp_path / "run" / "student"
    state = load_file(folder / "model.safetensors")
    state["model.out_conv.bias"][:] = float("nan")
    save_file(state, folder / "model.safetensors")
    description = json.loads((folder / "student.json").read_text())
    import hashlib

    description["weights_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "student.json").write_text(json.dumps(description))
    done = inside("evaluate", student, "--samples", "20")
    assert done.returncode == 1 and "NaN" in done.stderr
