"""The embedded digits: shipped files, the extractor, what the figure notices, and the record that ships."""

import importlib.util
from pathlib import Path

import pytest
import torch

from distillkit import DistillkitError, load_teacher
from distillkit.embedded import assets
from distillkit.embedded.digits.data import load_digits, split_digits
from distillkit.embedded.digits.protocol import digits_features, digits_reference
from distillkit.evaluation.frechet import distance_to, frechet_distance, jackknife_error
from distillkit.evaluation.generator import teacher_generator
from distillkit.evaluation.moments import Moments
from distillkit.evaluation.pipeline import measure
from distillkit.evaluation.presets import default_protocol, load_measure
from distillkit.evaluation.record import Record, digest_of
from distillkit.evaluation.teacher_record import record_key, teacher_record

CPU = torch.device("cpu")
MEASURED = {5000: 0.0010585893, 200: 0.0070073221}
"""The digits teacher's figure with so many samples, as version 0.1 measured it."""


def moments_of(images):
    moments = Moments(64)
    moments.add(digits_features()(images))
    return moments.finish()


def distance(images):
    moments = moments_of(images)
    return distance_to(moments.mean, moments.covariance, digits_reference().mean, digits_reference().root).value


def test_shipped_files_are_small_and_match_their_hashes():
    files = assets.shipped_files()
    sizes = {name: path.stat().st_size for name, path in files.items()}
    of_shapes = sum(size for name, size in sizes.items() if files[name].is_relative_to(assets.FOLDER / "shapes"))
    assert of_shapes < 6e6 and sum(sizes.values()) - of_shapes < 5e6
    assert set(assets.asset_hashes()) == set(files)
    for name in assets.asset_hashes():
        assert assets.asset_path(name).is_file()


def test_an_altered_file_is_refused(monkeypatch):
    monkeypatch.setattr(assets, "asset_hashes", lambda: {"digits8.safetensors": "0" * 64})
    with pytest.raises(DistillkitError, match=r"digits8\.safetensors"):
        assets.asset_path.__wrapped__("digits8.safetensors")


def test_classifier_is_accurate_on_held_out_digits():
    pixels, labels = load_digits()
    _, test = split_digits()
    with torch.no_grad():
        right = digits_features().network(pixels[test].float() / 127.5 - 1).argmax(1) == labels[test]
    assert right.float().mean() >= 0.985


def test_the_classifiers_training_learns():
    path = Path(__file__).parents[2] / "tools" / "train_digits_classifier.py"
    spec = importlib.util.spec_from_file_location("train_digits_classifier", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    _, accuracy = tool.train_classifier(epochs=3)
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


def test_only_digits_are_measured():
    with pytest.raises(DistillkitError, match="digits8cnn"):
        digits_features()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_a_fresh_measurement_of_the_teacher_gives_the_known_figure():
    """On 200 samples for speed: the same code on 5,000 made the record that ships."""
    teacher = load_teacher("digits")
    record = measure(teacher_generator(teacher), load_measure("digits8", count=200), device=CPU)
    assert record.figure.value == pytest.approx(MEASURED[200], rel=0.02)
    assert record.nfe == 35


def test_the_shipped_record_is_whole_and_has_the_known_figure():
    teacher = load_teacher("digits")
    protocol = load_measure(default_protocol(teacher))
    body = teacher.records[record_key(teacher_generator(teacher), protocol)]
    record, figure = Record.model_validate(body), Record.model_validate(body).figure
    assert record.digest == digest_of(body) and record.protocol_id == protocol.protocol.id
    assert figure.value == pytest.approx(MEASURED[5000], rel=1e-3)
    assert figure.value == pytest.approx(sum(figure.terms.values()), rel=1e-9)
    assert figure.standard_error == pytest.approx(jackknife_error(figure.leave_one_out), rel=1e-9)


def test_the_shipped_record_is_found_and_its_speed_is_measured_here(monkeypatch):
    from distillkit.evaluation import teacher_record as module

    teacher = load_teacher("digits")
    monkeypatch.setattr(module, "measure", lambda *a, **k: pytest.fail("measured what ships"))
    monkeypatch.setattr(module, "samples_per_second", lambda *a, **k: 123.0)
    monkeypatch.setattr(module, "_SPEEDS", {})
    record = teacher_record(teacher, load_measure("digits8"), device=CPU)
    assert record.figure.value == pytest.approx(MEASURED[5000], rel=1e-3)
    assert record.images_per_second == 123.0 and record.nfe == 35


def test_teacher_is_at_the_noise_floor():
    """Its samples are at most 1.3 times as far from the data as two random halves are from each other."""
    pixels, _ = load_digits()
    halves = []
    for seed in range(5):
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(seed))
        a, b = (moments_of(pixels[index]) for index in order.tensor_split(2))
        halves.append(frechet_distance(a.mean, a.covariance, b.mean, b.covariance).value)
    assert MEASURED[5000] <= 1.3 * sum(halves) / len(halves)
