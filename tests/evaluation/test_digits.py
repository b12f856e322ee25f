"""The embedded evaluation: shipped files, protocol identity, what the figure notices, seeded samples."""

import json
from pathlib import Path

import pytest
import torch

from distillkit import DistillkitError, load_teacher
from distillkit.embedded.assets import FOLDER, asset_hashes, asset_path
from distillkit.embedded.digits.data import load_digits, split_digits
from distillkit.embedded.digits.protocol import digits_features, digits_protocol, digits_reference, train_classifier
from distillkit.evaluation.frechet import distance_to, frechet_distance
from distillkit.evaluation.moments import Moments
from distillkit.evaluation.sampling import balanced_labels, seeded_noise
from distillkit.progress import Quiet
from distillkit.jobs.scores import ruler_for, student_pixels, teacher_pixels, teacher_score

CPU = torch.device("cpu")


def distance(pixels):
    moments = Moments(64)
    moments.add(digits_features()(pixels))
    moments.finish()
    return distance_to(moments.mean, moments.covariance, digits_reference().mean, digits_reference().root).value


def test_shipped_files_are_small_and_match_their_hashes():
    assert sum(p.stat().st_size for p in FOLDER.glob("*.safetensors")) < 3e6
    assert set(asset_hashes()) == {p.name for p in FOLDER.iterdir() if p.suffix in (".safetensors", ".json")} - {
        "sha256.json", "scores.json"
    }  # fmt: skip
    for name in asset_hashes():
        assert asset_path(name).is_file()


def test_an_altered_asset_is_refused(monkeypatch):
    from distillkit import assets

    monkeypatch.setattr(assets, "asset_hashes", lambda: {"digits8.safetensors": "0" * 64})
    with pytest.raises(DistillkitError, match="missing or altered; reinstall"):
        assets.asset_path.__wrapped__("digits8.safetensors")


def test_classifier_is_accurate_on_held_out_digits():
    pixels, labels = load_digits()
    _, test = split_digits()
    with torch.no_grad():
        right = digits_features().network(pixels[test].float() / 127.5 - 1).argmax(1) == labels[test]
    assert right.float().mean() >= 0.985


def test_classifier_training_learns():
    _, accuracy = train_classifier(epochs=3)
    assert accuracy > 0.7


def test_reference_is_the_whole_data_set_in_units_of_its_variance():
    pixels, _ = load_digits()
    assert abs(distance(pixels)) < 1e-7
    assert digits_reference().covariance.trace().item() == pytest.approx(1.0, rel=1e-6)


def test_the_figure_notices_what_it_should():
    pixels, labels = load_digits()
    floor = max(distance(pixels[torch.randperm(1797)[:898]]) for _ in range(3))
    assert floor < 0.01
    assert distance(pixels[labels < 8]) > 5 * floor  # dropped classes
    assert distance(pixels.roll(1, 3)) > 2 * floor  # a shift by one pixel
    noisy = (pixels.float() + 25 * torch.randn(pixels.shape)).clamp(0, 255).to(torch.uint8)
    assert distance(noisy) > 1.5 * floor


def test_teacher_is_at_the_noise_floor():
    """Its Heun-18 samples are at most 1.3 times as far from the data as two random halves are from each other."""
    pixels, _ = load_digits()
    halves = []
    for seed in range(5):
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(seed))
        parts = [Moments(64), Moments(64)]
        for part, index in zip(parts, order.tensor_split(2), strict=True):
            part.add(digits_features()(pixels[index]))
            part.finish()
        a, b = parts
        halves.append(frechet_distance(a.mean, a.covariance, b.mean, b.covariance).value)
    teacher = load_teacher("digits")
    result = teacher_score(teacher, ruler_for(teacher.spec, 5000), CPU, Quiet())
    assert result.value <= 1.3 * sum(halves) / len(halves)
    assert result.nfe == 35


def test_shipped_teacher_score_is_reproduced():
    """The figure that ships is what a new measurement gives, here on fewer samples for speed."""
    teacher = load_teacher("digits")
    ruler = ruler_for(teacher.spec, 500)
    measured = ruler.score(teacher_pixels(teacher, 18), teacher.denoiser, teacher.spec, CPU, batch=250)
    shipped = next(iter(json.loads((FOLDER / "scores.json").read_text()).values()))
    assert measured.nfe == shipped["nfe"]
    # 500 samples carry a bias of about c / N; the order of magnitude must agree.
    assert measured.value < 10 * sum(shipped["terms"].values())


def test_protocol_identity():
    protocol = digits_protocol()
    assert protocol.id == digits_protocol().id and protocol.id.startswith("p1-") and len(protocol.id) == 19
    assert protocol.model_copy(update={"name": "other"}).id == protocol.id, "the name is for people"
    assert digits_protocol(count=4999).id != protocol.id
    assert digits_protocol(first_seed=1).id != protocol.id
    assert protocol.label == "FD[digits8cnn/fc64]-5000"


def test_noise_is_per_seed_and_equals_the_reference_draws(golden):
    expected = golden("frechet").tensors["rng.noise_f32"]
    assert torch.equal(seeded_noise([0, 1, 2], (3, 8, 8)), expected[:3])
    assert torch.equal(seeded_noise([1], (3, 8, 8)), expected[1:2])
    assert balanced_labels(range(8, 13), 10).labels.tolist() == [8, 9, 0, 1, 2]


def test_score_does_not_depend_on_the_batch_size(tiny_teacher):
    from distillkit import StudentGenerator

    student = StudentGenerator.from_teacher(tiny_teacher).eval()
    ruler = ruler_for(tiny_teacher.spec, 300)
    results = [
        ruler.score(student_pixels(student, tiny_teacher), student.denoiser, student.spec, CPU, batch=batch)
        for batch in (300, 64)
    ]
    assert results[0].value == pytest.approx(results[1].value, rel=1e-4)
    assert results[0].nfe == results[1].nfe == 1.0


def test_no_ruler_for_other_images(tiny_teacher):
    assert ruler_for(tiny_teacher.spec.model_copy(update={"shape": (3, 32, 32)}), 100) is None
    assert Path(FOLDER / "digits8.safetensors").exists()
