"""The CLIP score: what transformers' own CLIP gives for images and prompts, alone and beside a Fréchet distance."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from distillkit import ExtractorSpec, FeatureExtractor, UsageError
from distillkit.evaluation.clip import Clip, clip_figure
from distillkit.evaluation.compare import compare
from distillkit.evaluation.record import read_record
from distillkit.evaluation.reference import Reference
from distillkit.jobs.context import job_context
from distillkit.jobs.evaluate import evaluate_subject
from distillkit.jobs.options import EvaluationOptions
from tests.models.pipelines import change, clip_tokenizer, quiet, stable_diffusion

PROMPTS = ["a cat", "two dogs", "three birds"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A CLIP with random weights, for images of 32 pixels."""
    quiet()
    folder = tmp_path_factory.mktemp("clips")
    tokenizer = clip_tokenizer(folder / "words")
    torch.manual_seed(9)  # of a seed whose cosines are positive
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 16, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    (folder / "tiny" / "preprocessor_config.json").write_text(json.dumps(size))
    return folder / "tiny"


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(30, 3, 5, 4, generator=generator)
    return (torch.nn.functional.interpolate(coarse, size=(50, 40), mode="bilinear") * 255).to(torch.uint8)


@torch.no_grad()
def test_cosines_are_those_of_transformers(model, images):
    from transformers import CLIPTokenizerFast

    clip, theirs = Clip(str(model)), CLIPModel.from_pretrained(model).eval()
    tokens = CLIPTokenizerFast.from_pretrained(model)(PROMPTS, padding=True, return_tensors="pt")
    pixels = []
    for image in images[:3].permute(0, 2, 3, 1).numpy():
        made = np.asarray(Image.fromarray(image).resize((32, 40), Image.Resampling.BICUBIC))[4:36]
        pixels.append((made / 255 - clip.mean.flatten().numpy()) / clip.std.flatten().numpy())
    values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    out = theirs(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=values)
    torch.testing.assert_close(clip(images[:3]), out.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.texts(PROMPTS), out.text_embeds, rtol=0, atol=1e-5)
    cosines = (out.image_embeds * out.text_embeds).sum(1)
    figure = clip_figure(clip(images[:3]), clip, PROMPTS)
    assert figure.value == pytest.approx(100 * cosines.mean().item(), abs=1e-3) and figure.value > 1
    assert clip_figure(-clip(images[:3]), clip, PROMPTS).value == 0  # no image counts below 0


def test_a_long_text_ends_at_the_limit(model):
    clip = Clip(str(model))
    assert torch.isfinite(clip.texts(["cat " * 400, ""])).all()


def test_the_error_is_that_of_a_mean(model, images):
    clip = Clip(str(model))
    with torch.no_grad():
        embeddings = clip(images)
    figure = clip_figure(embeddings, clip, PROMPTS)
    scores = 100 * (embeddings * clip.texts(PROMPTS)[torch.arange(30) % 3]).sum(1).clamp(min=0)
    assert figure.value == pytest.approx(scores.mean().item(), rel=1e-5)
    assert figure.standard_error == pytest.approx((scores.std() / 30**0.5).item(), rel=1e-4)
    assert np.mean(figure.leave_one_out) == pytest.approx(figure.value, rel=1e-5)
    with pytest.raises(UsageError, match="--prompts"):
        clip_figure(embeddings, clip, [])


class Colours(FeatureExtractor):
    def __init__(self):
        super().__init__()
        self.spec = ExtractorSpec(id="colours/means", weights_sha256="1" * 64, dim=3, input="0..255")

    def forward(self, pixels):
        return pixels.float().flatten(2).mean(2)


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "others.txt").write_text("ten fish\nno fish\n")
    pipeline = stable_diffusion(tmp_path / "pipeline")

    def run(**options):
        with job_context(quiet=True) as context:
            given = {"samples": 24, "prompts": "prompts.txt", "steps": 1, "output": "records", **options}
            [made] = evaluate_subject(str(pipeline), EvaluationOptions(**given), context)
            return read_record(made.path)

    return run


GREY = {"reference": Reference("grey", 50, torch.zeros(3), torch.eye(3, dtype=torch.float64)), "extractor": Colours()}


def test_alone_and_beside_a_distance(evaluate, model):
    alone = evaluate(clip=model)
    assert alone.label.startswith("CLIP[tiny@") and alone.label.endswith("-24") and list(alone.figures) == [alone.label]
    both = evaluate(clip=model, **GREY)
    plain = evaluate(**GREY)
    assert list(both.figures) == [both.label, alone.label] and both.label == plain.label
    assert both.figures[alone.label] == alone.figure and both.figure == plain.figure
    assert both.protocol.clip == alone.protocol.extractor and both.protocol_id != plain.protocol_id
    assert "100 max(0, cosine)" in alone.protocol.meaning and "more is better" in alone.protocol.meaning


def test_everything_that_changes_the_score_changes_the_protocol(evaluate, model, tmp_path):
    made = {"plain": evaluate(clip=model), "prefix": evaluate(clip=model, clip_prefix="a photo of "),
            "prompts": evaluate(clip=model, prompts="others.txt")}  # fmt: skip
    shutil.copytree(model, tmp_path / "larger")
    change(tmp_path / "larger" / "preprocessor_config.json", size={"shortest_edge": 36})
    made["size"] = evaluate(clip=tmp_path / "larger")
    shutil.copytree(model, tmp_path / "tiny")
    torch.manual_seed(7)
    CLIPModel(CLIPConfig.from_pretrained(model)).save_pretrained(tmp_path / "tiny")
    made["weights"] = evaluate(clip=tmp_path / "tiny")
    assert len({record.protocol_id for record in made.values()}) == len(made)
    assert len({record.figure.value for record in made.values()}) == len(made)


def test_more_is_better(evaluate, model):
    one, two = (evaluate(clip=model, guidance=guidance) for guidance in (1.0, 8.0))
    [table], _ = compare([one, two])
    best = max((one, two), key=lambda record: record.figure.value)
    [other] = [line for line in table.lines if line.record is not best]
    assert other.difference < 0 and other.difference_error is not None
    assert next(line for line in table.lines if line.record is best).difference == 0


def test_given_images_are_compared_with_the_prompts_in_their_order(evaluate, model, tmp_path):
    made = evaluate(clip=model, save_images="images")
    with job_context(quiet=True) as context:
        options = {"clip": model, "output": "records", "samples": 24}
        [given] = evaluate_subject("images", EvaluationOptions(prompts="prompts.txt", **options), context)
        assert given.record.figure.value == pytest.approx(made.figure.value, rel=1e-6)
        assert given.record.protocol_id != made.protocol_id
        [others] = evaluate_subject("images", EvaluationOptions(prompts="others.txt", **options), context)
        assert others.record.protocol_id != given.record.protocol_id
        with pytest.raises(UsageError, match="--prompts"):
            evaluate_subject("images", EvaluationOptions(**options), context)


def test_what_is_no_clip_is_named(evaluate, model, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        Clip(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"config\.json"):
        Clip(str(tmp_path / "empty"))
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="bert"):
        Clip(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="--clip"):
        evaluate(metrics=("fd", "clip"), **GREY)
    with pytest.raises(UsageError, match="--clip-prefix"):
        evaluate(clip_prefix="a photo of ")
