"""The benchmark of trainings of the papers' sizes runs where there is no GPU, on embedded teachers."""

import json
import sys

import pytest
import torch

from benchmarks.speed import full_size
from distillkit.models.store.resolve import resolve


def measured(monkeypatch, tmp_path, *cases):
    file = tmp_path / "speed.json"
    options = ["--batch", "2", "--round-seconds", "0.01", "--json", str(file), "--cases", *cases]
    monkeypatch.setattr(sys, "argv", ["full_size", *options])
    full_size.main()
    return json.loads(file.read_text())


def test_trainings_are_timed_in_the_precision_of_their_preset(monkeypatch, tmp_path):
    seen, step = set(), full_size.Trainer.train_step

    def train_step(self):
        seen.add(self.accelerator.mixed_precision)
        return step(self)

    monkeypatch.setattr(full_size.Trainer, "train_step", train_step)
    result = measured(monkeypatch, tmp_path, "edm-imagenet64:dmd:off", "edm-imagenet64:dmd2:off")
    assert seen == {"bf16"} and not result["not_measured"]
    assert [(case["model"], case["student_every"]) for case in result["cases"]] == [("digits", 1), ("digits", 5)]
    for case in result["cases"]:
        assert case["images_per_second"] == pytest.approx(2 / case["seconds_per_step"], rel=0.05)
        assert case["tflop_per_image"] > 0 and case["weights_and_moments_gib"] > 0
    assert result["environment"]["versions"]["torch"]


def test_the_other_model_is_of_stable_diffusions_shape(tmp_path):
    full_size.describe_stable_diffusion(tmp_path)
    with torch.device("meta"):
        teacher = resolve(str(tmp_path)).fresh(0)
    assert sum(p.numel() for p in teacher.denoiser.parameters()) == 859_520_964 and teacher.spec.shape == (4, 64, 64)
    given, null = full_size.encodings(3, torch.device("cpu"))
    assert given(torch.tensor([2, 0]))["text"].shape == (2, 77, 768) and null["text"].shape == (1, 77, 768)


@pytest.mark.parametrize("case", ["edm-imagenet64", "edm-imagenet64:kd:off", "x:dmd:off", "edm-imagenet64:dmd:fast"])
def test_a_case_that_is_none_is_refused(monkeypatch, tmp_path, case):
    with pytest.raises(SystemExit) as error:
        measured(monkeypatch, tmp_path, case)
    assert error.value.code == 2
