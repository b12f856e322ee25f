"""Another size of pictures, another embedded guidance: equal to diffusers' pipelines, kept by students, in all keys."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline

from distillkit import StudentGenerator, UsageError, load_student, load_teacher
from distillkit.data.pair_store import PairStore
from distillkit.jobs.context import job_context
from distillkit.jobs.evaluate import evaluate_subject
from distillkit.jobs.options import EvaluationOptions
from distillkit.models.diffusers.flux import packed
from distillkit.models.diffusers.options import PipelineConfig
from distillkit.models.store.resolve import resolve
from distillkit.students.artifact import Student
from distillkit.students.description import describe_student
from distillkit.students.export import export
from tests.evaluation.test_whole_pipeline import Colours
from tests.models import pipelines
from tests.models.test_families import built, conditions, noise_for, same

WORDS = ["a red cat", "two dogs"]
WIDE = "24x16"
"""Of pictures; latents of the tiny pipelines are half as large."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("sd") / "tiny")


FAMILIES = {
    "SD": (pipelines.stable_diffusion, {}, "ddim", {}),
    "XL": (pipelines.sdxl, {}, "euler", {}),
    "PixArt": (pipelines.pixart, {}, "ddim", {"use_resolution_binning": False}),
    "PixArt that sees sizes": (
        pipelines.pixart,
        {"attention_head_dim": 12, "cross_attention_dim": 24, "sample_size": 128, "patch_size": 4},
        "ddim",
        {"use_resolution_binning": False},
    ),
    "SD3": (pipelines.sd3, {"options": {"use_dynamic_shifting": True, "base_shift": 0.6}}, "euler", {}),
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_another_size_is_that_of_the_pipeline(name, tmp_path):
    build, changes, solver, call = FAMILIES[name]
    _, pipeline = built(tmp_path, build, **changes)
    teacher = load_teacher(str(tmp_path / "tiny"), resolution=WIDE)
    assert teacher.spec.shape[1:] == (8, 12) and teacher.spec.name == "tiny 24x16"
    noise, condition = noise_for(teacher, 2), conditions(teacher, WORDS)
    theirs = pipeline(
        WORDS, latents=noise, guidance_scale=4.0, num_inference_steps=3, output_type="latent", height=16, width=24,
        **call,
    ).images  # fmt: skip
    same(teacher.sample(noise, condition, steps=3, solver=solver, guidance=4.0), theirs)
    assert teacher.codec.decode(theirs).shape == (2, 3, 16, 24)
    if name == "XL":
        assert condition["sizes"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2
    if name == "PixArt that sees sizes":
        assert condition["resolution"].tolist() == [[16, 24]] * 2


@torch.no_grad()
def test_flux_of_another_size_and_embedded_guidance(tmp_path):
    _, pipeline = built(tmp_path, pipelines.flux)
    teacher = load_teacher(str(tmp_path / "tiny"), resolution=(24, 16), embedded_guidance=7.0)
    assert teacher.spec.name == "tiny 24x16 embedded guidance 7"
    own = resolve(str(tmp_path / "tiny")).spec
    assert own.shape[1:] == (128, 128) and teacher.spec.shape[1:] == (8, 12)
    assert own.network["arguments"]["schedule"] != teacher.spec.network["arguments"]["schedule"], "a shift by the size"
    noise, condition = noise_for(teacher, 2), conditions(teacher, WORDS)
    theirs = pipeline(
        WORDS, latents=packed(noise), num_inference_steps=3, height=16, width=24, guidance_scale=7.0,
        output_type="latent",
    ).images  # fmt: skip
    same(packed(teacher.sample(noise, condition, steps=3, solver="euler")), theirs)
    assert condition["guidance"].tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("build", "asked", "named"),
    [
        (pipelines.stable_diffusion, {"resolution": "25x16"}, "multiples of 2, such as 24x16"),
        (pipelines.flux, {"resolution": 18}, "multiples of 4, such as 16x16"),
        (pipelines.sd3, {"resolution": 64}, "12 positions"),
        (pipelines.dit, {"resolution": 32}, "DiTTransformer2DModel"),
        (pipelines.stable_diffusion, {"embedded_guidance": 3.0}, "--embedded-guidance 3: .* embeds no guidance"),
        (lambda folder: pipelines.flux(folder, guided=False), {"embedded_guidance": 3.0}, "embeds no guidance"),
        (pipelines.stable_diffusion, {"resolution": "wide"}, "--resolution: write the side"),
        (pipelines.stable_diffusion, {"resolution": 0}, "--resolution"),
        (pipelines.stable_diffusion, {"embedded_guidance": -1.0}, "--embedded-guidance"),
    ],
)
def test_what_cannot_be_is_refused(build, asked, named, tmp_path):
    with pytest.raises(UsageError, match=named):
        load_teacher(str(build(tmp_path / "tiny")), **asked)


def test_other_teachers_are_refused(tiny_teacher_folder):
    for name in ("digits", "shapes", str(tiny_teacher_folder)):
        with pytest.raises(UsageError, match="--resolution 32x32 is for pipelines of diffusers"):
            load_teacher(name, resolution=32)


def test_every_key_holds_it(tiny, tmp_path):
    plain, wide = load_teacher(str(tiny)), load_teacher(str(tiny), resolution=WIDE)
    assert PairStore(plain, root=tmp_path).folder != PairStore(wide, root=tmp_path).folder
    tall = load_teacher(str(tiny), resolution="16x24")
    assert len({PairStore(teacher, root=tmp_path).shards.folder.name[-16:] for teacher in (plain, wide, tall)}) == 3
    pipelines.flux(tmp_path / "flux")
    both = [load_teacher(str(tmp_path / "flux"), resolution=16, embedded_guidance=w) for w in (None, 2.0)]
    assert len({PairStore(teacher, root=tmp_path).shards.folder.name[-16:] for teacher in both}) == 2


def test_a_run_at_another_size(inside, tmp_path):
    """Pairs, training, student, export and a picture by diffusers: all at the size and guidance asked for."""
    tiny = pipelines.flux(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    run = (
        "run", "kd", "--teacher", tiny, "--prompts", tmp_path / "prompts.txt", "--protocol", "none", "--duration", "16",
        "--batch", "16", "--pairs-count", "8", "--pairs-steps", "1", "--channels-last", "off",
    )  # fmt: skip
    refused = inside(*run, "--resolution", "wide", "--dry-run")
    assert refused.returncode == 2 and "--resolution" in refused.stderr and "1024x576" in refused.stderr
    done = inside(*run, "--resolution", WIDE, "--embedded-guidance", "7", "-o", "run", "--sample-every", "1k")
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "run" / "config.yaml").read_text()
    assert "resolution:\n  - 24\n  - 16" in said and "embedded_guidance: 7.0" in said
    student = load_student(tmp_path / "run")
    assert student(seed=3, prompts=["a cat"]).shape == (1, 3, 16, 24)
    described = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert described["shape"] == [4, 8, 12] and described["conditioner"]["encoder"]["guidance"] == 7.0
    other = inside(*run[:2], "--resume", "run", "--duration", "32", "--resolution", "16")
    assert other.returncode == 2 and "tiny 24x16" in other.stderr and "tiny 16x16" in other.stderr
    for command in ("sample", "evaluate"):
        again = inside(command, "run", "--resolution", "16")
        assert again.returncode == 2 and "keeps what it was trained with" in again.stderr
    exported = inside("export", "run", "out", "--to", "diffusers", "--self-contained")
    assert exported.returncode == 0, exported.stderr
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    written = (tmp_path / "out" / "README.md").read_text().partition("image = pipeline(")[2].partition(").images")[0]
    assert "height=16" in written and "width=24" in written and "guidance_scale=7.0" in written
    call = eval(f"(lambda prompt, **call: {{'prompt': prompt, **call}})({written})")
    assert pipeline(**call, output_type="np").images.shape == (1, 16, 24, 3)


def test_an_exported_student_says_a_size_that_is_not_its_networks(tiny, tmp_path):
    for size, said in ((WIDE, True), (None, False)):
        teacher, out = load_teacher(str(tiny), resolution=size), tmp_path / str(size)
        generator = StudentGenerator.from_teacher(teacher)
        described = describe_student(generator, teacher, method="kd", method_package="kd 1")
        export(Student(generator, teacher.conditioner, teacher.codec, described), "diffusers", out)
        assert ("height=16, width=24" in (out / "README.md").read_text()) is said


def test_pictures_of_a_teacher(tiny, inside, tmp_path):
    shown = inside("teachers", "show", tiny, "--resolution", WIDE)
    assert shown.returncode == 0 and "4 x 8 x 12" in shown.stdout and "3 x 16 x 24" in shown.stdout, shown.stderr
    made = inside(
        "teachers", "sample", tiny, "--prompt", "a cat", "--steps", "1", "--resolution", WIDE, "--output", "one",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    from PIL import Image

    assert Image.open(tmp_path / "one" / "000000.png").size == (24, 16)


def test_a_measurement_at_another_size(tiny, tmp_path, monkeypatch):
    """As a teacher, and as the pipeline with its own scheduler: other samples, and another file of the record."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    from distillkit.evaluation.reference import Reference

    given = {"reference": Reference("grey", 50, torch.zeros(6), torch.eye(6, dtype=torch.float64)), "samples": 4,
             "extractor": Colours(), "prompts": "prompts.txt", "steps": 1, "output": "records"}  # fmt: skip
    with job_context(quiet=True) as context:

        def measured(**options):
            [made] = evaluate_subject(str(tiny), EvaluationOptions(**given, **options), context)
            return made

        found = [
            measured(**kind, resolution=size) for kind in ({}, {"solver": "ddim"}) for size in (None, WIDE, "16x24")
        ]
        with pytest.raises(UsageError, match=r"--embedded-guidance 2: .* takes it as --guidance"):
            measured(embedded_guidance=2.0)
    assert len({made.path for made in found}) == 6
    for three in (found[:3], found[3:]):
        assert len({made.record.figure.value for made in three}) == 3
    assert "tiny 24x16" in found[1].record.subject.name and "tiny 24x16" in found[4].record.subject.name


def test_objects_keep_what_they_were_loaded_with(tiny):
    import distillkit

    with pytest.raises(UsageError, match="load_teacher"):
        distillkit.distil("kd", teacher=load_teacher(str(tiny)), resolution=24, quiet=True)
    assert PipelineConfig.of(None, None).options == () and PipelineConfig.of("24", None).sides == (24, 24)
