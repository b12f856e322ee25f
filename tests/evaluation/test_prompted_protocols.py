"""Protocols with prompts: MS-COCO's, and files of `reference make`; images are prepared alike, drawn or given."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import distillkit.cli.protocols as command
from distillkit import DistillkitError, ExtractorSpec, FeatureExtractor, Teacher, UsageError, load_teacher, offer
from distillkit import registry as registries
from distillkit.contracts.text import PromptList, prompts_sha256
from distillkit.data.config import DataConfig
from distillkit.evaluation.extractor import evaluation_folder
from distillkit.evaluation.presets import load_measure, preset
from distillkit.evaluation.reference import Reference, load_reference, save_reference
from distillkit.evaluation.reference_files import pin, pinned
from distillkit.jobs.context import job_context
from distillkit.jobs.evaluate import evaluate_subject
from distillkit.jobs.measures import measures_for
from distillkit.jobs.options import EvaluationOptions
from distillkit.jobs.reference import make_reference
from distillkit.runs.config import EvaluationConfig
from tests.models.pipelines import stable_diffusion


class Colours(FeatureExtractor):
    """Means of the channels, and how they change from pixel to pixel."""

    def __init__(self):
        super().__init__()
        self.spec = ExtractorSpec(id="colours/changes", weights_sha256="1" * 64, dim=6, input="0..255")

    def forward(self, pixels):
        values = pixels.float()
        return torch.cat([values.flatten(2).mean(2), values.diff(dim=3).abs().flatten(2).mean(2)], dim=1)


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """The evaluation folder with what the protocol needs, the reference's hash recorded."""
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    folder = evaluation_folder()
    folder.mkdir(parents=True)
    made = Reference("coco2014/val", 40504, torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64))
    save_reference(folder / "coco30k.safetensors", made)
    pin("coco30k", made.spec.sha256)
    (folder / "coco30k-prompts.txt").write_text("a cat on a mat\n\ntwo dogs\n")
    return folder


def test_the_prompts_of_coco_are_used_when_their_hash_is_recorded(coco, capsys):
    with pytest.raises(DistillkitError, match="--prompts-sha256") as first:
        load_measure("coco30k", extractor=Colours())
    shown = str(first.value).rpartition(" ")[2]
    command.pin("coco30k", prompts_sha256=shown)
    assert pinned("coco30k/prompts") == shown and str(coco / "lock.json") in capsys.readouterr().out.replace("\n", "")
    measure = load_measure("coco30k", extractor=Colours())
    samples = measure.protocol.samples
    assert measure.prompts == ("a cat on a mat", "two dogs") and samples.count == 30_000
    assert samples.prompts_sha256 == shown and samples.prepare == "centre square, lanczos to 256"
    (coco / "coco30k-prompts.txt").write_text("a cat on a mat\ntwo cats\n")
    with pytest.raises(DistillkitError, match="recorded"):
        load_measure("coco30k", extractor=Colours())
    (coco / "coco30k-prompts.txt").unlink()
    with pytest.raises(DistillkitError, match=r"coco30k-prompts\.txt"):
        load_measure("coco30k", extractor=Colours())


def test_what_cannot_be_pinned_is_named(coco):
    with pytest.raises(UsageError, match="no prompts"):
        command.pin("edm-cifar10", prompts_sha256="0" * 64)
    with pytest.raises(UsageError, match="--prompts-sha256 12"):
        command.pin("coco30k", prompts_sha256="12")
    with pytest.raises(UsageError, match="--sha256"):
        command.pin("coco30k")
    assert not pinned("coco30k/prompts")


def test_what_was_not_verified_is_said():
    assert "not verified" in preset("coco30k").title and preset("coco30k").reference.count == 40_504


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setattr(registries, "_FILES", [])
    registries.registry.cache_clear()
    offer(extractors={"colours": Colours})
    yield
    registries.registry.cache_clear()


@pytest.fixture
def file(tmp_path, monkeypatch, colours):
    """A protocol in a file: pictures of several sizes, prepared to 12 pixels, and two prompts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(0)
    for k in range(30):
        pixels = generator.integers(0, 256, (20 + k, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{k:02d}.png")
    with job_context(quiet=True) as context:
        make_reference(
            DataConfig(path="photos", resolution=12), "colours", tmp_path / "ref.safetensors", context.reporter,
            context.stop, device=context.device, prompts=("a cat", "zwei Hühner"),
        )  # fmt: skip
    return tmp_path / "ref.safetensors"


def test_a_file_has_its_prompts(file):
    assert load_reference(file).prompts == ("a cat", "zwei Hühner")
    measure = load_measure(str(file))
    assert measure.prompts == ("a cat", "zwei Hühner")
    others = measure.with_prompts(["a dog"])
    assert others.protocol.id != measure.protocol.id and others.prompts == ["a dog"]


def test_drawn_images_are_prepared_as_given_ones_are(file, tmp_path):
    pipeline = stable_diffusion(tmp_path / "pipeline")
    options = {"protocol": str(file), "samples": 24, "output": "records"}
    with job_context(quiet=True) as context:
        [drawn] = evaluate_subject(str(pipeline), EvaluationOptions(steps=1, save_images="made", **options), context)
        [given] = evaluate_subject("made", EvaluationOptions(**options), context)
        assert Image.open(tmp_path / "made" / "000000.png").size == (16, 16)
        assert drawn.record.protocol.samples.prepare == given.record.protocol.samples.prepare != "none"
        assert drawn.record.figure.value == pytest.approx(given.record.figure.value, rel=1e-6)
        own = {"reference": load_reference(file), "extractor": Colours(), "prompts": file.parent / "prompts.txt"}
        (tmp_path / "prompts.txt").write_text("a cat\nzwei Hühner\n")
        del options["protocol"]
        own["reference"] = Reference("plain", 30, own["reference"].mean, own["reference"].covariance)
        [plain] = evaluate_subject(str(pipeline), EvaluationOptions(steps=1, **options, **own), context)
        assert plain.record.figure.value != pytest.approx(drawn.record.figure.value, rel=1e-3)


def test_runs_of_text_say_on_which_prompts_they_were_measured(file, tmp_path):
    teacher = load_teacher(str(stable_diffusion(tmp_path / "pipeline")))
    plain = load_reference(file)
    save_reference(tmp_path / "plain.safetensors", dataclasses.replace(plain, prompts=()))
    for texts in (["a dog"], ["a fish", "a bird"]):
        own = Teacher(teacher.denoiser, teacher.spec, teacher.conditioner.with_prompts(PromptList.of(texts, "own")),
                      teacher.codec)  # fmt: skip
        measures = measures_for(own, EvaluationConfig(protocol=str(tmp_path / "plain.safetensors")))
        assert measures.closing.prompts == measures.selecting.prompts == tuple(texts)
        assert measures.closing.protocol.samples.prompts_sha256 == prompts_sha256(texts)
        given = measures_for(own, EvaluationConfig(protocol=str(file)))
        assert given.closing.prompts == ("a cat", "zwei Hühner")
