"""`distillkit ema`: students and teachers with an average of another width, out of runs and files of other programs."""

import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import distillkit
from distillkit import DistillkitError, UsageError, load_student, load_teacher
from distillkit.engine.config import TrainingConfig
from distillkit.jobs.ema import _Mixed, _of_one_training, make_average
from distillkit.jobs.training import require_checkpoint_space
from distillkit.power_ema import Profile, mixture
from distillkit.progress import Quiet
from distillkit.runs.folder import RunFolder
from distillkit.students.snapshots import KeptAverage, kept_averages
from tests.conftest import denoiser_of
from tests.edm2.pickled import Encoder, write_snapshot
from tests.edm2.small import small
from tests.foreign.edm_format import write_network

QUIET = Quiet()


@pytest.fixture(scope="module")
def student(tiny_teacher_folder, tmp_path_factory):
    """A run that has kept averages."""
    folder = tmp_path_factory.mktemp("ema") / "run"
    distillkit.distil(
        "dmd", str(tiny_teacher_folder), output_dir=folder, quiet=True, device="cpu", duration=64, batch=8, lr=1e-2,
        pairs_count=8, pairs_steps=2, distance="l2", protocol="none", ema_sigmas="0.05,0.10", snapshot_every=8,
    )  # fmt: skip
    return folder


def by_hand(run, sigma, at=None):
    found = kept_averages(run / "snapshots", at).averages
    how = mixture([one.profile for one in found], Profile(found[-1].profile.time, sigma))
    mixed = {
        name: sum(c * one.weights[name].read().double() for c, one in zip(how.coefficients, found, strict=True)).float()
        for name in found[-1].weights
    }
    return mixed, how


def test_a_student_with_another_average(student, inside, tmp_path):
    made = inside("ema", student, "--sigma-rel", "0.08", "-o", "mine")
    assert made.returncode == 0, made
    said = " ".join(made.stdout.split())
    assert "sigma_rel 0.08 at 64 images, of 16 that were kept with sigma_rel 0.05, 0.1" in said
    expected, how = by_hand(student, 0.08)
    assert f"met to {how.error:.2%}" in said and "next: distillkit sample" in said
    found = load_student(tmp_path / "mine")
    raw, average = load_student(f"{student}@student"), load_student(student)
    state = found.generator.denoiser.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
    name = next(name for name, value in state.items() if value.ndim == 4)
    for other in (raw, average):
        assert not torch.equal(state[name], other.generator.denoiser.state_dict()[name])
    assert "sigma_rel 0.08 at 64 images" in " ".join(found.description.remarks)
    assert "sigma_rel 0.08 at 64 images" in (tmp_path / "mine" / "README.md").read_text()
    assert inside("sample", "mine", "--num", "2", "--output", "a.png").returncode == 0

    # Of one that was kept: itself, at its time.
    early = make_average(student, 0.1, tmp_path / "early", at=32, reporter=QUIET)
    kept = kept_averages(student / "snapshots", 32).averages[-1]
    assert early.images == 32 and early.mixture.error < 1e-6 and early.profile == kept.profile
    for name, value in load_student(tmp_path / "early").generator.denoiser.state_dict().items():
        torch.testing.assert_close(value, kept.weights[name].read(), rtol=1e-5, atol=1e-6)
    assert load_student(tmp_path / "early").description.images_seen == 32


class Counted:
    """A tensor that is read when it is its turn; counts those that are alive."""

    alive = most = 0

    def __init__(self, value):
        self.value, self.shape, self.dtype = value, tuple(value.shape), value.dtype

    def read(self):
        made = self.value.clone()
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
        weakref.finalize(made, self.dropped)
        return made

    @staticmethod
    def dropped():
        Counted.alive -= 1


def test_one_tensor_is_read_after_the_other_and_what_never_changed_is_the_same_to_the_bit():
    table, coefficients = torch.rand(1000), [0.3, -1.7, 0.1, 0.9, 1.4]
    assert torch.equal(_Mixed([Counted(table)] * 5, coefficients).read(), table)
    moved = [table + k for k in range(5)]
    expected = sum(c * one.double() for c, one in zip(coefficients, moved, strict=True)).float()
    assert torch.equal(_Mixed([Counted(one) for one in moved], coefficients).read(), expected)
    numbers = [torch.tensor([k]) for k in range(5)]
    assert torch.equal(_Mixed(numbers, coefficients).read(), numbers[-1])
    half = _Mixed([Counted(one.half()) for one in moved], coefficients).read()
    assert half.dtype == torch.float16 and torch.allclose(half.float(), expected, rtol=1e-2)
    # The last one, which shape and type are taken from, beside the one that is added.
    assert Counted.alive == 0 and Counted.most <= 3


def test_averages_of_earlier_stages_and_twins_are_no_part_of_it():
    def one(images, seen, since, width=0.1):
        return KeptAverage(images, Profile(seen, width), since, {}, f"{images}-{width}")

    kept = [one(32, 32, 0), one(64, 16, 48), one(96, 48, 48), one(96, 48, 48, 0.05)]
    assert [found.origin for found in _of_one_training(kept)] == ["64-0.1", "96-0.05", "96-0.1"]
    with pytest.raises(UsageError, match=r"96-0\.1 and 96-0\.1 are of one time and width"):
        _of_one_training([*kept, one(96, 48, 48)])


def test_snapshots_need_room_on_the_disk(tmp_path):
    config = TrainingConfig(duration=6400, batch=10, ema_sigmas="0.05,0.1")
    assert config.snapshots == 64 and TrainingConfig().snapshots == 0
    require_checkpoint_space(RunFolder(tmp_path, ""), config, 0, 1)
    with pytest.raises(DistillkitError, match="checkpoints and 64 snapshots of averages in"):
        require_checkpoint_space(RunFolder(tmp_path, ""), config, 0, 2**60)


def test_a_teacher_with_another_average(inside, tmp_path):
    (tmp_path / "data").mkdir()
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{k}.png")
    trained = inside(
        "teachers", "train", "--data", "data", "--duration", "24", "--batch", "4", "--set", "network.model_channels=8",
        "--set", "network.num_blocks=1", "--protocol", "none", "-o", "run", "-q", "--ema-sigmas", "0.05,0.10",
        "--snapshot-every", "8",
    )  # fmt: skip
    assert trained.returncode == 0, trained
    # The training need not be finished, and its own average is another.
    shutil.move(tmp_path / "run" / "teacher", tmp_path / "own")
    made = inside("ema", "run", "--sigma-rel", "0.2", "--at", "16", "--name", "mine", "--licence", "free", "-o", "out")
    assert made.returncode == 0 and "that is far off" in " ".join(made.stdout.split()), made
    teacher, own = load_teacher(str(tmp_path / "out")), load_teacher(str(tmp_path / "own"))
    assert (teacher.spec.name, teacher.spec.licence, own.spec.name) == ("mine", "free", "data")
    assert teacher.spec.source.startswith(own.spec.source) and "sigma_rel 0.2 at 16 images" in teacher.spec.source
    expected, _ = by_hand(tmp_path / "run", 0.2, 16)
    for name, value in teacher.denoiser.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert inside("teachers", "sample", "out", "--num", "2", "--steps", "2", "--output", "a.png").returncode == 0


def edm(golden, path, denoiser=None):
    """A pickle of EDM's training; its network is made where there is none yet."""
    constructor = golden("edm_adm_small").description["constructor"]
    denoiser = denoiser or denoiser_of(constructor)
    write_network(path, denoiser, constructor)
    return denoiser


def edm2(golden, path, denoiser=None):
    """A snapshot of EDM2's training."""
    reference = golden("edm2_small")
    denoiser, kwargs = denoiser or small(reference), reference.description["constructor"]
    write_snapshot(path, denoiser, kwargs, Encoder("StandardRGBEncoder"), half=False)
    return denoiser


@pytest.mark.parametrize("write", [edm, edm2], ids=lambda write: write.__name__)
def test_files_of_other_trainings_are_read_by_their_names(write, golden, inside, tmp_path):
    (tmp_path / "kept").mkdir()
    denoiser, given = write(golden, tmp_path / "unnamed.pkl"), []
    for thousands in (8, 16, 24):
        for width in ("0.050", "0.100"):
            with torch.no_grad():
                for parameter in denoiser.parameters():
                    parameter.normal_(generator=torch.Generator().manual_seed(len(given)))
            write(golden, tmp_path / "kept" / f"network-snapshot-{thousands:07d}-{width}.pkl", denoiser)
            given.append((thousands, float(width), {n: v.clone() for n, v in denoiser.state_dict().items()}))
    (tmp_path / "kept" / "network-snapshot-latest.pkl").write_bytes(b"not looked at")
    made = inside("ema", "kept", "--sigma-rel", "0.075", "--at", "16k", "-o", "out", "--name", "mine")
    assert made.returncode == 0, made
    # 8 and 16 thousand are multiples of 1,024: 8,192 and 16,384.
    profiles = [Profile(1024 * thousands, width) for thousands, width, _ in given[:4]]
    how = mixture(profiles, Profile(16_384, 0.075))
    assert "at 16,384 images, of 4 that were kept" in " ".join(made.stdout.split())
    found = load_teacher(str(tmp_path / "out"))
    assert found.spec.name == "mine" and "network-snapshot" in found.spec.source
    assert {name for name, _ in found.denoiser.named_parameters()} == {n for n, _ in denoiser.named_parameters()}
    for name, value in found.denoiser.state_dict().items():
        mixed = sum(c * weights[name].double() for c, (*_, weights) in zip(how.coefficients, given[:4], strict=True))
        torch.testing.assert_close(value, mixed.float(), rtol=1e-5, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".ema-")] == []


def test_files_of_weights_alone_need_to_know_whose_they_are(tiny_teacher_folder, tmp_path, inside):
    weights = load_file(tiny_teacher_folder / "model.safetensors")
    for thousands, factor in ((1, 1.0), (2, 3.0)):
        save_file({n: v * factor for n, v in weights.items()}, tmp_path / f"net-{thousands}-0.10.safetensors")
    files = [f"net-{thousands}-0.10.safetensors" for thousands in (1, 2)]
    assert "--like" in inside("ema", *files, "--sigma-rel", "0.1", "-o", "out").stderr
    made = inside("ema", *files, "--sigma-rel", "0.1", "--like", tiny_teacher_folder, "-o", "out")
    assert made.returncode == 0, made
    state = load_teacher(str(tmp_path / "out")).denoiser.state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(state[name], 3.0 * value)


def test_what_cannot_be_is_said_in_one_message(student, tiny_teacher_folder, inside, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain" / "checkpoints").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for name in ("a-1-0.05.pt", "b-1-0.05.pt", "c-1-0.29.pt", "d.pt"):
        (tmp_path / name).touch()
    at = ("--sigma-rel", "0.1", "-o", "out")
    cases = {
        (student, "--sigma-rel", "0.4"): "between 0 and 0.289",
        (student, "--sigma-rel", "nan"): "between 0 and 0.289",
        (student, *at, "--at", "20"): "the nearest: 8, 16, 24",
        (student, *at, "--at", "many"): "--at many: write a number of images",
        (student, *at, "--like", "digits"): "is for files of weights",
        (student, *at, "--name", "x"): "this run trained a student",
        ("nowhere", *at): "no file at nowhere",
        ("empty", *at): "neither a run that has kept averages",
        ("plain", *at): "has kept no averages: a training keeps them with --ema-sigmas",
        ("a-1-0.05.pt", "b-1-0.05.pt", *at): "several trainings lie there, named a, b",
        ("c-1-0.29.pt", *at): "sigma_rel 0.29 at 1 thousand images cannot be",
        ("d.pt", *at): "its name does not say",
        (student, "--sigma-rel", "0.1", "-o", "full"): "is there already",
        (student, "--sigma-rel", "0.1", "-o", "d.pt/x"): "d.pt is a file, and a folder is due there",
        (student, "--sigma-rel", "0.1", "-o", "new/a", "--at", "20"): "the nearest: 8, 16, 24",
        ("a-1-0.05.pt", *at, "--like", "d.pt"): "--like d.pt: what it is made of is known only when",
    }
    for arguments, said in cases.items():
        done = inside("ema", *arguments)
        assert done.returncode == 2 and said in " ".join(done.stderr.split()), (arguments, done)
        assert not (tmp_path / "out").exists() and not (tmp_path / "new").exists()
    assert inside("ema", "a-1-0.05.pt", *at).returncode == 1


def test_damaged_snapshots_are_refused_and_networks_that_differ(student, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(student / "snapshots", run / "snapshots")
    place = run / "snapshots" / "step-000000003"
    state = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps({**state, "step": 4}))
    with pytest.raises(DistillkitError, match="does not match its recorded hash"):
        make_average(run, 0.1, tmp_path / "out", reporter=QUIET)
    (place / "state.json").write_text(json.dumps(state))
    file = place / "average-0.1.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(DistillkitError, match=r"average-0\.1\.safetensors does not match its recorded sha256"):
        make_average(run, 0.1, tmp_path / "out", reporter=QUIET)
    file.unlink()
    with pytest.raises(DistillkitError, match=r"average-0\.1\.safetensors.* Move .*step-000000003 away"):
        make_average(run, 0.1, tmp_path / "out", reporter=QUIET)
    shutil.rmtree(place)
    assert make_average(run, 0.1, tmp_path / "without", reporter=QUIET).folder.is_dir()
    assert not (tmp_path / "out").exists()
    other = {"a": torch.zeros(2)}
    save_file(other, tmp_path / "net-1-0.05.safetensors")
    with pytest.raises((DistillkitError, UsageError)):
        make_average(tmp_path / "net-1-0.05.safetensors", 0.1, tmp_path / "out", like="digits", reporter=QUIET)
