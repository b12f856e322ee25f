"""Pipelines of diffusers as subjects: their own scheduler, the protocol's noise and prompts, evaluations counted."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from distillkit import DistillkitError, ExtractorSpec, FeatureExtractor, OneStep, StudentGenerator, UsageError
from distillkit.diffusion import ConsistencySampler, RenoisingSampler
from distillkit.evaluation import whole_pipeline as whole_pipeline_module
from distillkit.evaluation.reference import Reference
from distillkit.evaluation.whole_pipeline import WholePipeline, whole_pipeline
from distillkit.jobs.context import job_context
from distillkit.jobs.evaluate import evaluate_subject
from distillkit.jobs.options import EvaluationOptions
from distillkit.models.store.resolve import load_teacher
from distillkit.students.artifact import Student
from distillkit.students.description import describe_student
from distillkit.students.export import export
from tests.models.pipelines import change, dit, flux, pixart, sd3, stable_diffusion


class Colours(FeatureExtractor):
    """Mean and spread of every channel."""

    def __init__(self):
        super().__init__()
        self.spec = ExtractorSpec(id="colours/moments", weights_sha256="1" * 64, dim=6, input="0..255")

    def forward(self, pixels):
        flat = pixels.float().flatten(2)
        return torch.cat([flat.mean(2), flat.std(2)], dim=1)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Stable Diffusion with DDIM, and with the scheduler of latent consistency models."""
    folder = tmp_path_factory.mktemp("pipelines")
    ddim = stable_diffusion(folder / "ddim")
    shutil.copytree(ddim, folder / "lcm")
    change(folder / "lcm" / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler")
    change(folder / "lcm" / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    return folder


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\ntwo dogs\nthree birds\n")

    def run(subject, **options):
        given = {"reference": Reference("grey", 50, torch.zeros(6), torch.eye(6, dtype=torch.float64)), "samples": 6,
                 "extractor": Colours(), "prompts": "prompts.txt", **options}  # fmt: skip
        with job_context(quiet=True) as context:
            [made] = evaluate_subject(subject, EvaluationOptions(**given), context)
            return made.record

    return run


@pytest.mark.parametrize(("guidance", "nfe"), [(1.0, 4), (3.0, 8)])
def test_a_pipeline_with_its_own_scheduler(evaluate, pipelines, guidance, nfe):
    record = evaluate(str(pipelines / "lcm"), steps=4, guidance=guidance, output="records")
    assert record.nfe == nfe and record.subject.kind == "pipeline"
    assert record.subject.sampler == {"kind": "diffusers:LCMScheduler", "steps": 4, "timesteps": [999, 759, 499, 259]}
    assert record.subject.guidance == guidance and "lcm, 4 LCMScheduler steps" in record.subject.name


def test_what_a_gpu_does_once_for_a_size_is_not_counted(evaluate, pipelines, monkeypatch):
    plain = evaluate(str(pipelines / "lcm"), steps=2, output="plain")
    drawn, draw = [], WholePipeline.images
    monkeypatch.setattr(WholePipeline, "images", lambda self, *given: drawn.append(1) or draw(self, *given))
    monkeypatch.setattr(whole_pipeline_module, "chooses_kernels", lambda device: True)
    record = evaluate(str(pipelines / "lcm"), steps=2, output="records")
    assert len(drawn) == 2 and record.nfe == plain.nfe == 2 and record.figures == plain.figures


def pictures(folder):
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(folder.iterdir())])


def test_samples_depend_on_their_seed_alone(evaluate, pipelines, tmp_path):
    for name, options in {"one": {"batch": 6}, "other": {"batch": 4}, "later": {"first_seed": 3, "samples": 3}}.items():
        evaluate(str(pipelines / "lcm"), steps=2, output="records", save_images=name, **options)
    one, other, later = (pictures(tmp_path / name) for name in ("one", "other", "later"))
    assert abs(one - other).max() <= 1 and one.std() > 10
    assert abs(one[3:] - later).max() <= 1  # three prompts in turn
    assert abs(one[:3] - later).max() > 10


@pytest.mark.parametrize("family", [dit, pixart, sd3, flux])
def test_other_families(evaluate, tmp_path, family):
    """Fresh noise between evaluations too, in any batch."""
    folder = family(tmp_path / "own")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if family in (dit, pixart):
        change(scheduler, _class_name="LCMScheduler")
        change(folder / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    else:
        change(scheduler, stochastic_sampling=True)
    texts = {} if family is not dit else {"prompts": None}
    made = [evaluate(str(folder), steps=2, batch=batch, samples=2, output="records", save_images=f"{batch}", **texts)
            for batch in (2, 1)]  # fmt: skip
    one, other = pictures(tmp_path / "2"), pictures(tmp_path / "1")
    assert abs(one - other).max() <= 1 and one.std() > 5
    assert made[0].nfe == 2 and made[0].protocol_id == made[1].protocol_id


def test_prompts_are_part_of_the_protocol(evaluate, pipelines, tmp_path):
    (tmp_path / "others.txt").write_text("a cat\n")
    made = [evaluate(str(pipelines / "lcm"), steps=1, output="records", prompts=f"{name}.txt")
            for name in ("prompts", "others")]  # fmt: skip
    assert made[0].protocol_id != made[1].protocol_id
    assert made[0].figures != made[1].figures
    with pytest.raises(UsageError, match="--prompts"):
        evaluate(str(pipelines / "lcm"), steps=1, prompts=None)
    with pytest.raises(UsageError, match="--prompts"):
        evaluate(str(pipelines / "ddim"), prompts=None)


@pytest.mark.parametrize("sampler", [OneStep(), RenoisingSampler(levels=(999.0, 499.0))])
def test_an_exported_student_measures_the_same_by_either_way(evaluate, pipelines, tmp_path, sampler):
    teacher = load_teacher(str(pipelines / "ddim"))
    generator = StudentGenerator.from_teacher(teacher, sampler)
    described = describe_student(generator, teacher, method="kd", method_package="kd 1")
    student = Student(generator, teacher.conditioner, teacher.codec, described)
    export(student, "diffusers", tmp_path / "out", self_contained=True)
    (tmp_path / "out" / "student.json").unlink()
    steps = len(sampler.times(teacher.schedule))
    ours = evaluate(student, save_images="ours", output="records")
    theirs = evaluate(str(tmp_path / "out"), steps=steps, save_images="theirs", output="records")
    assert ours.protocol_id == theirs.protocol_id and ours.nfe == theirs.nfe == steps
    difference = abs(pictures(tmp_path / "ours") - pictures(tmp_path / "theirs"))
    # Only the first noise is the protocol's; fresh noise between evaluations is the scheduler's.
    assert (difference > 0).mean() < 0.02 if steps == 1 else difference.max() > 1


@pytest.mark.parametrize(
    "sampler", [OneStep(), RenoisingSampler(levels=(999.0, 499.0)), ConsistencySampler(levels=(999.0, 499.0))],
    ids=lambda sampler: type(sampler).__name__,
)  # fmt: skip
def test_steps_of_a_student_are_its_evaluations(evaluate, pipelines, tmp_path, sampler):
    teacher = load_teacher(str(pipelines / "ddim"))
    generator = StudentGenerator.from_teacher(teacher, sampler)
    described = describe_student(generator, teacher, method="kd", method_package="kd 1")
    student = Student(generator, teacher.conditioner, teacher.codec, described)
    out, own = student, len(sampler.times(teacher.schedule))
    if not isinstance(sampler, ConsistencySampler):  # which no scheduler of diffusers is
        export(student, "diffusers", tmp_path / "out", self_contained=True)
        out = str(tmp_path / "out")
    plain = evaluate(out, output="records")
    same = evaluate(out, steps=own, output="records")
    assert plain.subject.kind == "student" and same.figures == plain.figures and same.nfe == own
    with pytest.raises(UsageError, match="--solver euler is for teachers"):
        evaluate(out, solver="euler")
    if isinstance(sampler, ConsistencySampler):
        more = evaluate(out, steps=3, output="records")
        assert more.nfe == 3 and more.figures != plain.figures
        assert more.figures == evaluate(out, nfe=(3,), output="records").figures
    else:
        with pytest.raises(UsageError, match=f"3 evaluations: .* fixed .* takes {own}"):
            evaluate(out, steps=3)


def test_the_variant_of_the_precision_is_measured(evaluate, pipelines, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(pipelines / "lcm", folder)
    plain = evaluate(str(folder), steps=1, precision="bf16", output="records")
    for part in ("unet", "text_encoder"):
        [path] = (folder / part).glob("*.safetensors")
        other = {name: value.to(torch.bfloat16) / 2 for name, value in load_file(path).items()}
        save_file(other, path.with_name(f"{path.stem}.bf16.safetensors"), {"format": "pt"})
    halved = evaluate(str(folder), steps=1, precision="bf16", output="records")
    assert halved.figures != plain.figures and halved.subject.weights_sha256 != plain.subject.weights_sha256
    full = evaluate(str(folder), steps=1, output="records")
    assert full.subject.weights_sha256 == plain.subject.weights_sha256
    found = {precision: whole_pipeline(folder, 1, 1.0, precision=precision) for precision in ("fp32", "bf16", "fp16")}
    assert [one.assembly.variant for one in found.values()] == ["", "bf16", ""]
    assert "unet/diffusion_pytorch_model.bf16.safetensors" in found["bf16"].assembly.files


def test_a_solver_makes_a_teacher_of_it(evaluate, pipelines):
    record = evaluate(str(pipelines / "ddim"), steps=3, solver="euler", output="records")
    assert record.subject.kind == "teacher" and record.subject.sampler == {"kind": "euler", "steps": 3}
    assert record.nfe == 3
    with pytest.raises(UsageError, match="LCMScheduler"):
        evaluate(str(pipelines / "lcm"), steps=3, solver="euler")
    with pytest.raises(UsageError, match="--solver dpm"):
        evaluate(str(pipelines / "ddim"), steps=3, solver="dpm")
    with pytest.raises(UsageError, match="--steps and --nfe"):
        evaluate(str(pipelines / "ddim"), steps=3, nfe=(3,))


def changed(source, folder, **index):
    shutil.copytree(source, folder)
    change(folder / "model_index.json", **index)
    return folder


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ({"_class_name": ["pipeline", "Own"]}, "Own"),
        ({"_class_name": "OwnPipeline"}, "OwnPipeline"),
        ({"unet": ["own_network", "OwnNetwork"]}, "OwnNetwork"),
        ({"scheduler": ["own_scheduler", "OwnScheduler"]}, "OwnScheduler"),
    ],
)
def test_code_of_others_is_not_run(evaluate, pipelines, tmp_path, index, named):
    folder = changed(pipelines / "lcm", tmp_path / "own", **index)
    module = next(iter(index.values()))[0]
    for place in (folder, folder / "unet", folder / "scheduler"):
        (place / f"{module}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with pytest.raises(UsageError, match=named):
        evaluate(str(folder), steps=1)
    assert not (tmp_path / "executed").exists()


def test_pickles_are_not_read(evaluate, pipelines, tmp_path):
    folder = changed(pipelines / "lcm", tmp_path / "own")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(DistillkitError, match="safetensors"):
        evaluate(str(folder), steps=1)
