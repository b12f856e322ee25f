"""`teachers train shapes`: the embedded text-to-image teacher's network, anew, on pictures that a program draws."""

import json

import torch
from safetensors.torch import load_file

from distillkit import SampleRNG, load_teacher
from distillkit.contracts.text import PromptList
from distillkit.embedded.assets import asset_folder
from distillkit.embedded.shapes import teacher as shapes_teacher
from distillkit.embedded.shapes.world import scene_of
from distillkit.engine.config import TrainingConfig
from distillkit.evaluation.record import read_record
from distillkit.jobs import part_data
from distillkit.jobs.part_data import part_images, pipeline_of
from distillkit.jobs.teacher_config import TeacherRunConfig
from distillkit.models.text.tokens import ClipTokens
from distillkit.progress import Quiet

NETWORK = "unet/diffusion_pytorch_model.safetensors"


def test_its_network_is_trained_anew_on_its_own_world(inside, tmp_path):
    done = inside("teachers", "train", "shapes", "--part", "network", "--duration", "1280", "--batch", "64",
                  "--protocol", "none", "--quiet",
                  "--channels-last", "off", "--output-dir", "t")  # fmt: skip
    assert done.returncode == 0, done.stderr
    # It brings its sentences, so that the next command needs no others, and works.
    assert "--teacher t/teacher  " in done.stdout
    planned = inside("run", "kd", "--teacher", "t/teacher", "--distance", "l2", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    made, shipped = load_teacher(str(tmp_path / "t" / "teacher"), Quiet()), load_teacher("shapes", Quiet())
    names = [name for name, value in made.denoiser.state_dict().items() if value.ndim > 1]
    assert all(not torch.equal(made.denoiser.state_dict()[n], shipped.denoiser.state_dict()[n].float()) for n in names)
    assert made.schedule == shipped.schedule and made.spec.shape == shipped.spec.shape
    log = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/denoising_score_matching"] for line in log if "loss/denoising_score_matching" in line]
    assert losses[-1] < losses[0]
    assert load_file(tmp_path / "t" / "teacher" / NETWORK)["conv_in.weight"].dtype == torch.float32


def test_on_another_pipeline_it_is_measured_as_shapes_and_the_record_stays(inside, tmp_path):
    """Before: the training of all parts called its network after the folder beneath it, for which no protocol is known,
    and what a training had measured was printed and gone."""
    done = inside("teachers", "train", "shapes", "--part", "network", "--like", asset_folder("shapes/pipeline"),
                  "--duration", "64", "--batch", "64", "--evaluation-samples", "40", "--evaluate-samples", "20",
                  "--evaluate-every", "1M", "--channels-last", "off", "--output-dir", "t")  # fmt: skip
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "t" / "teacher" / "records").iterdir()
    record = read_record(path)
    assert record.protocol.name == "shapes" and record.subject.name.startswith("shapes")
    # Each figure is told.
    assert record.figures.keys() > {"alignment[shapescnn]-40"}
    assert all(f"{label} {figure.text}" in done.stdout for label, figure in record.figures.items())


def test_the_sentences_are_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(shapes_teacher, "scene_of", lambda text: read.append(text) or scene_of(text))
    teacher = load_teacher("shapes", Quiet())
    batches = teacher.images(torch.device("cpu"))
    for step in range(2):
        batches.batch(SampleRNG(0), step, range(3))
    assert len(read) == teacher.conditioner.count
    # Of other prompts, others.
    teacher.conditioner = teacher.conditioner.with_prompts(PromptList.of(["a small red circle on white"], "one"))
    one = batches.batch(SampleRNG(0), 0, range(1))
    assert len(read) == 2000 + 1 and torch.equal(
        one.condition["text"], teacher.conditioner.encode(torch.tensor([0]))["text"]
    )


def test_sentences_are_tokenized_once(monkeypatch):
    config = TeacherRunConfig(name="shapes", part="text-encoder", training=TrainingConfig(batch=8))
    pipeline, encode = pipeline_of(config), ClipTokens.encode
    opened = [part_images(config, pipeline, print).open(torch.device("cpu"), 8)]
    monkeypatch.setattr(part_data, "TOKENIZED", 1)
    opened.append(part_images(config, pipeline, print).open(torch.device("cpu"), 8))
    calls = []
    monkeypatch.setattr(ClipTokens, "encode", lambda self, texts: calls.append(1) or encode(self, texts))
    made = [[one.batch(SampleRNG(0), step, range(8)).condition["tokens"] for step in range(2)] for one in opened]
    assert len(calls) == 1 + 2 and all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_a_picture_depends_on_its_number_alone():
    teacher = load_teacher("shapes", Quiet())
    batches = teacher.images(torch.device("cpu"))
    whole, part = batches.batch(SampleRNG(0), 3, range(8)), batches.batch(SampleRNG(0), 3, [5, 6])
    torch.testing.assert_close(whole.sample[5:7], part.sample, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole.sample[5], batches.batch(SampleRNG(0), 4, [5]).sample[0], atol=1e-2)
