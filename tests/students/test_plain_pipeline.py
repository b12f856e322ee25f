"""Students of diffusers pipelines as plain pipelines: the same samples by diffusers alone, and by load_student."""

import inspect
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline

import distillkit.cli.export as command
from distillkit import Condition, DistillkitError, OneStep, StudentGenerator, UsageError, load_student, load_teacher
from distillkit.diffusion import (
    ConsistencySampler,
    DenoiserBoundary,
    EulerSampler,
    FlowSchedule,
    PredictionDenoiser,
    RenoisingSampler,
    StepBoundary,
)
from distillkit.registry import offer
from distillkit.students.artifact import save_student
from distillkit.students.description import describe_student
from distillkit.students.export import export
from distillkit.students.schedulers import scheduler_of
from tests.models.pipelines import dit, flux, pixart, sd3, sdxl, stable_diffusion

PROMPTS = ["a cat", "two dogs"]


def student_at(folder, source, sampler, guidance=1.0):
    """A student of a pipeline whose weights are not the teacher's, saved and loaded again."""
    teacher = load_teacher(str(source))
    torch.manual_seed(1)
    generator = StudentGenerator.from_teacher(teacher, sampler)
    with torch.no_grad():
        for value in generator.parameters():
            value.add_(0.02 * torch.randn_like(value))
    description = describe_student(generator, teacher, method="kd", method_package="kd 1", guidance=guidance)
    save_student(folder, generator, description)
    return load_student(folder)


def drawn(seed, count, shape):
    """What a pipeline draws between its evaluations from a generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def latents_of(student, noise, seed=3):
    more = drawn(seed, 4, noise.shape)
    with torch.no_grad():
        condition = student.conditioner.encode(student.conditioner.parse(PROMPTS))
        return student.generator(noise, condition, lambda k: more[k])


def snippet(folder):
    return (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]


def call_of(folder):
    """The arguments of the pipeline's call on the card, but the prompt."""
    written = snippet(folder).partition("image = pipeline(")[2].partition(").images")[0]
    return eval(f"(lambda prompt='', **call: call)({written})")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("teacher") / "sd")


SAMPLERS = {
    "one-step": OneStep(),
    "one step lower": OneStep(t=399.0),
    "two": RenoisingSampler(levels=(999.0, 499.0)),
    "four": RenoisingSampler(levels=(999.0, 749.0, 499.0, 249.0)),
    "uneven": RenoisingSampler(levels=(999.0, 800.0, 300.0)),
    "consistency": ConsistencySampler(levels=(999.0,), boundary=StepBoundary()),
    "consistency, four": ConsistencySampler(levels=(999.0, 759.0, 499.0, 259.0), boundary=StepBoundary()),
    # A boundary that is far from the denoiser itself.
    "consistency, mixed": ConsistencySampler(
        levels=(999.0, 499.0, 99.0), boundary=StepBoundary(sigma_data=2.0, timestep_scaling=0.01)
    ),
    "between": OneStep(t=526.7),
    "euler": EulerSampler(levels=(999.0, 749.0, 500.0, 250.0, 0.0)),
    "euler, even": EulerSampler(levels=(999.0, 499.0, 0.0)),
    "euler, lower": EulerSampler(levels=(799.0, 399.0, 0.0)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_diffusers_alone_makes_the_same(source, tmp_path, name):
    student = student_at(tmp_path / "student", source, SAMPLERS[name])
    export(student, "diffusers", tmp_path / "out", self_contained=True)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *student.generator.shape)
    theirs = pipeline(
        PROMPTS, latents=noise, output_type="latent", generator=torch.Generator().manual_seed(3),
        **call_of(tmp_path / "out"),
    ).images  # fmt: skip
    ours = latents_of(student, noise)
    scale = ours.abs().max().item()
    # diffusers adds a schedule up in float32, distillkit in float64.
    torch.testing.assert_close(theirs / scale, ours / scale, rtol=0, atol=5e-5)
    assert ours.std() > 0.1
    again = latents_of(load_student(tmp_path / "out"), noise)
    assert torch.equal(again, ours)


def test_a_large_network_is_in_several_files_that_pipelines_read(source, tmp_path, monkeypatch):
    student = student_at(tmp_path / "student", source, OneStep())
    monkeypatch.setattr("distillkit.students.plain_pipeline.SHARD_BYTES", 100_000)
    export(student, "diffusers", tmp_path / "out", self_contained=True)
    assert len(list((tmp_path / "out" / "unet").glob("*-of-*.safetensors"))) > 1
    unet = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True).unet.state_dict()
    again = load_student(tmp_path / "out").generator.denoiser.model.unet.state_dict()
    ours = student.generator.denoiser.model.unet.state_dict()
    assert all(torch.equal(unet[name], value) and torch.equal(again[name], value) for name, value in ours.items())


@pytest.mark.parametrize(
    ("prediction", "zero", "sampler"),
    [
        ("v_prediction", True, "one-step"),
        ("v_prediction", True, "four"),
        ("v_prediction", False, "consistency"),
        ("v_prediction", True, "consistency, mixed"),
        ("v_prediction", False, "between"),
        ("sample", False, "between"),
        ("v_prediction", True, "euler, even"),
        ("v_prediction", False, "one step lower"),
        ("sample", False, "one-step"),
    ],
)
def test_other_predictions_and_zero_terminal_snr(tmp_path, prediction, zero, sampler):
    changes = {"prediction_type": prediction, "rescale_betas_zero_snr": zero, "beta_schedule": "squaredcos_cap_v2"}
    source = stable_diffusion(tmp_path / "teacher", options=changes)
    test_diffusers_alone_makes_the_same(source, tmp_path, sampler)
    saved = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert saved["rescale_betas_zero_snr"] is zero or "lower" in sampler
    assert saved["prediction_type"] == prediction


FLOW = RenoisingSampler(levels=(1.0, 0.9, 0.5))


@pytest.mark.parametrize(
    ("family", "sampler"),
    [
        (sdxl, SAMPLERS["four"]),
        (dit, OneStep()),
        (dit, SAMPLERS["four"]),
        (pixart, SAMPLERS["uneven"]),
        (sd3, OneStep()),
        (sd3, FLOW),
        (sd3, EulerSampler(levels=(1.0, 0.9, 0.5, 0.0))),
        (sd3, ConsistencySampler(levels=(1.0, 0.6), boundary=DenoiserBoundary())),
        (flux, EulerSampler(levels=(1.0, 0.0))),
        (sdxl, SAMPLERS["consistency, four"]),
        (sdxl, SAMPLERS["between"]),
        (flux, FLOW),
        (lambda folder: "shapes", OneStep()),
        (lambda folder: "shapes", SAMPLERS["consistency, four"]),
    ],
)
def test_every_family_by_the_call_on_the_card(tmp_path, monkeypatch, family, sampler):
    monkeypatch.setattr("distillkit.models.diffusers.flux.SIDE", 8)
    student = student_at(tmp_path / "student", family(tmp_path / "teacher"), sampler)
    # The parts of a teacher that comes with a package are copied without being asked for.
    export(student, "diffusers", tmp_path / "out", self_contained=student.description.teacher.name != "shapes")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    known, call = inspect.signature(pipeline.__call__).parameters, call_of(tmp_path / "out")
    # A pipeline draws its first noise from the generator; what comes later too, or from torch's own.
    noise, *more = drawn(3, 4, (2, *student.generator.shape))
    if family in (dit, sd3):
        more = drawn(4, 3, noise.shape)
    elif family is flux:
        sides = student.codec.decoded_shape(student.generator.shape)[1:]
        packed = drawn(4, 3, (2, noise.shape[2] * noise.shape[3] // 4, 4 * noise.shape[1]))
        more = [pipeline._unpack_latents(one, *sides, pipeline.vae_scale_factor) for one in packed]
    typed = PROMPTS if "prompt" in known else ["7", "3"]
    call |= {"prompt": typed} if "prompt" in known else {"class_labels": [7, 3]}
    torch.manual_seed(4)
    theirs = pipeline(output_type="np", generator=torch.Generator().manual_seed(3), **call).images
    with torch.no_grad():
        condition = student.conditioner.encode(student.conditioner.parse(typed))
        ours = student.codec.decode(student.generator(noise, condition, lambda k: more[k]))
    difference = ours.permute(0, 2, 3, 1) - torch.from_numpy(theirs) * 255
    assert (difference.abs() > 1).float().mean() < 1e-3 and ours.float().std() > 5
    assert torch.equal(load_student(tmp_path / "out").codec.decode(noise), student.codec.decode(noise))


def test_a_teacher_that_ends_almost_in_pure_noise(tmp_path):
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    source = stable_diffusion(tmp_path / "teacher", "EulerDiscrete", changes)
    assert load_teacher(str(source)).schedule.last_alpha > 1e-4
    test_diffusers_alone_makes_the_same(source, tmp_path, "one-step")


@pytest.mark.parametrize(("name", "steps"), [("one-step", 1), ("one step lower", 1), ("two", 2), ("four", 4)])
def test_a_number_of_steps_starts_where_the_student_was_trained(source, tmp_path, name, steps):
    student = student_at(tmp_path / "student", source, SAMPLERS[name])
    export(student, "diffusers", tmp_path / "out", self_contained=True)
    scheduler = DiffusionPipeline.from_pretrained(tmp_path / "out").scheduler
    times = [int(t) for t in student.generator.sampler.times(student.generator.schedule)]
    for fewer in range(1, steps + 1):
        scheduler.set_timesteps(fewer)
        assert scheduler.timesteps[0] == times[0]
    assert scheduler.timesteps.tolist() == times
    with pytest.raises(ValueError, match="50"):
        scheduler.set_timesteps(50)  # the pipeline's own default is refused, not sampled


@pytest.mark.parametrize("self_contained", [False, True])
def test_the_snippet_on_the_card_runs_as_printed(source, tmp_path, monkeypatch, self_contained):
    student = student_at(tmp_path / "student", source, SAMPLERS["four"])
    place = tmp_path / "path" / "to" / "this" / "folder"
    written = export(student, "diffusers", place, self_contained=self_contained)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(snippet(place), scope)
    assert scope["image"].size == (16, 16)
    assert any(path.parent.name == "vae" for path in written) is self_contained
    assert not any(path.suffix in (".bin", ".pt", ".py") for path in written)
    assert set(scope["pipeline"].unet.state_dict()) == set(student.generator.denoiser.model.unet.state_dict())


def test_the_snippet_names_a_repository_with_its_revision(source, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "abc"
    shutil.copytree(source, snapshot)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **given: str(snapshot))
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *args, **given: [])
    student = student_at(tmp_path / "student", snapshot, OneStep())
    assert student.description.codec["parts"]["source"] == "hf:org/tiny@abc"
    export(student, "diffusers", tmp_path / "out")
    asked, code = [], snippet(tmp_path / "out").replace("path/to/this/folder", str(tmp_path / "out"))
    load = DiffusionPipeline.from_pretrained

    def loaded(name, revision=None, **given):
        asked.append((name, revision))
        return load(snapshot, **given)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", loaded)
    exec(code, {})
    assert asked == [("org/tiny", "abc")]


def test_only_a_self_contained_student_outlives_its_teacher(source, tmp_path):
    own = tmp_path / "teacher"
    shutil.copytree(source, own)
    student = student_at(tmp_path / "student", own, OneStep())
    images = student(2, seed=5, classes=PROMPTS)
    for name in ("alone", "referring"):
        export(student, "diffusers", tmp_path / name, self_contained=name == "alone")
    assert torch.equal(load_student(tmp_path / "referring")(2, seed=5, classes=PROMPTS), images)
    own.rename(tmp_path / "gone")
    assert torch.equal(load_student(tmp_path / "alone")(2, seed=5, classes=PROMPTS), images)
    (tmp_path / "alone").rename(tmp_path / "moved")
    moved = load_student(tmp_path / "moved")
    assert torch.equal(moved(2, seed=5, classes=PROMPTS), images)
    export(moved, "diffusers", tmp_path / "once more", self_contained=True)
    assert torch.equal(load_student(tmp_path / "once more")(2, seed=5, classes=PROMPTS), images)
    with pytest.raises(UsageError, match="--self-contained"):
        load_student(tmp_path / "referring")(2, classes=PROMPTS)


@pytest.mark.parametrize("file", ["vae/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"])
def test_another_file_in_a_self_contained_student_is_refused(source, tmp_path, file):
    student = student_at(tmp_path / "student", source, OneStep())
    export(student, "diffusers", tmp_path / "out", self_contained=True)
    with (tmp_path / "out" / file).open("ab") as changed:
        changed.write(b" ")
    with pytest.raises(DistillkitError, match=file.replace(".", r"\.")):
        load_student(tmp_path / "out")(1, classes=PROMPTS)


def test_other_weights_of_the_network_are_refused(source, tmp_path):
    student = student_at(tmp_path / "student", source, OneStep())
    export(student, "diffusers", tmp_path / "out")
    shutil.copyfile(
        source / "unet" / "diffusion_pytorch_model.safetensors",
        tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(DistillkitError, match="sha256"):
        load_student(tmp_path / "out")


@pytest.mark.parametrize("form", ["variant", "bin", "shards", "shards of a variant"])
def test_parts_in_other_forms_are_copied_as_diffusers_finds_them(source, tmp_path, form):
    own = tmp_path / "teacher"
    shutil.copytree(source, own)
    vae = diffusers.AutoencoderKL.from_pretrained(source, subfolder="vae")
    (own / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    vae.save_pretrained(
        own / "vae", variant="fp16" if "variant" in form else None, safe_serialization=form != "bin",
        max_shard_size="50KB" if "shards" in form else "10GB",
    )  # fmt: skip
    student = student_at(tmp_path / "student", own, OneStep())
    images = student(1, seed=2, classes=PROMPTS)
    written = export(student, "diffusers", tmp_path / "out", self_contained=True)
    assert not any(path.suffix == ".bin" for path in written)
    found = DiffusionPipeline.from_pretrained(tmp_path / "out", use_safetensors=True).vae.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in vae.state_dict().items())
    assert torch.equal(load_student(tmp_path / "out")(1, seed=2, classes=PROMPTS), images)


@pytest.mark.parametrize(
    ("sampler", "named"),
    [
        (ConsistencySampler(levels=(999.0,)), "KarrasBoundary"),
        (ConsistencySampler(levels=(999.0,), boundary=StepBoundary(), clip=True), "clipped"),
        (RenoisingSampler(levels=(999.0, 399.5)), r"399\.5.*--student-times"),
        (EulerSampler(levels=(999.5, 399.0, 0.0)), r"999\.5"),
        (EulerSampler(levels=(999.0, 499.0, 20.0)), "20"),
    ],
)
def test_what_no_scheduler_of_diffusers_samples_is_refused(source, tmp_path, sampler, named):
    student = student_at(tmp_path / "student", source, sampler)
    with pytest.raises(UsageError, match=named):
        export(student, "diffusers", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]


def velocity(x, t):
    """Stands for a network of a flow model, which diffusers gives times of 0 to 1,000."""
    return torch.tanh(x) * (0.5 + t / 1000)


class FlowNetwork(torch.nn.Module):
    def forward(self, x, t, condition):
        return velocity(x, 1000 * t.reshape(-1, 1, 1, 1))


EULER = EulerSampler.on_grid(4, FlowSchedule(shift=3.0))


@pytest.mark.parametrize("sampler", [OneStep(), RenoisingSampler(levels=(1.0, 0.9, 0.75, 0.5)), EULER])
def test_the_scheduler_of_a_flow_takes_the_same_steps(sampler):
    denoiser = PredictionDenoiser(FlowNetwork(), FlowSchedule(shift=3.0), "velocity")
    noise = torch.randn(2, 4, 8, 8)
    ours = sampler(denoiser, noise, Condition(), lambda k: drawn(3, 4, noise.shape)[k])
    plain = scheduler_of(StudentGenerator(denoiser, sampler, (4, 8, 8)))
    scheduler = getattr(diffusers, plain.name)(**plain.config)
    scheduler.set_timesteps(**{name: list(grid) for name, grid in plain.grid.items()})
    generator, x = torch.Generator().manual_seed(3), noise
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t), t, x, generator=generator, return_dict=False)[0]
    torch.testing.assert_close(x, ours, rtol=0, atol=1e-5)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [1000.0]


@pytest.mark.parametrize(
    ("sampler", "named"),
    [
        (OneStep(t=0.9), "0.9.*--student-times 1"),
        (EulerSampler(levels=(1.0, 0.5, 0.001)), "0.001"),
        (ConsistencySampler(levels=(1.0,)), "KarrasBoundary"),
    ],
)
def test_what_the_scheduler_of_a_flow_does_not_sample_is_refused(sampler, named):
    denoiser = PredictionDenoiser(FlowNetwork(), FlowSchedule(), "velocity")
    with pytest.raises(UsageError, match=named):
        scheduler_of(StudentGenerator(denoiser, sampler, (4, 8, 8)))


def test_repeated_and_in_the_place_of_another(source, tmp_path):
    student = student_at(tmp_path / "student", source, OneStep())
    written = export(student, "diffusers", tmp_path / "out", self_contained=True)
    assert export(student, "diffusers", tmp_path / "out", self_contained=True) == written
    with pytest.raises(UsageError, match="out"):
        export(student, "diffusers", tmp_path / "out")


def test_the_command(source, tmp_path, capsys, monkeypatch):
    student_at(tmp_path / "student", source, OneStep())
    monkeypatch.chdir(tmp_path)
    command.export("student", Path("out"), self_contained=True)
    said = capsys.readouterr().out
    assert "out/vae/diffusion_pytorch_model.safetensors" in said and "out/README.md says how" in said
    with pytest.raises(UsageError, match="two folders"):
        command.export("student", Path("one"), output_dir=Path("two"))
    with pytest.raises(UsageError, match="--self-contained"):
        command.export("student", Path("pushed"), push_to_hub="me/student")
    assert not (tmp_path / "pushed").exists()


def test_a_format_without_a_choice_has_no_self_contained(source, tmp_path):
    def write(student, folder):
        (folder / "weights").write_bytes(b"")

    student = student_at(tmp_path / "student", source, OneStep())
    offer(exporters={"plain": write})
    with pytest.raises(UsageError, match="--self-contained"):
        export(student, "plain", tmp_path / "out", self_contained=True)
