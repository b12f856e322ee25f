"""Students that others have published make what their own code makes of the same noise."""

import json
import os

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from distillkit import Condition, UsageError, convert_student, load_student
from distillkit.diffusion import ConsistencySampler, RenoisingSampler
from distillkit.models.diffusers import hub
from distillkit.students.card import card
from distillkit.students.consistency_pipeline import at_timesteps
from distillkit.students.export import export
from tests.conftest import denoiser_of
from tests.edm2.pickled import Encoder, write_snapshot
from tests.edm2.small import small
from tests.foreign.edm_format import write_network
from tests.models.original_layouts import weights
from tests.models.pipelines import change
from tests.published import consistency_pipeline

CLASSES = 4


@pytest.fixture(scope="module")
def consistency(tmp_path_factory):
    """A ConsistencyModelPipeline of the form of openai/diffusers-cd_imagenet64_l2, in small."""
    return consistency_pipeline(tmp_path_factory.mktemp("cm") / "cd_tiny", CLASSES)


def theirs(folder, noise, labels, generator=None, **call):
    """What plain diffusers makes, from -1 to 1."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        batch_size=len(noise), class_labels=labels, latents=noise.clone(), generator=generator, output_type="np", **call
    ).images  # fmt: skip
    return torch.from_numpy(made).permute(0, 3, 1, 2) * 2 - 1


def ours(student, noise, labels, generator=None):
    """The same by the student, fresh noise drawn as diffusers draws it."""
    condition = Condition(labels=torch.tensor(labels))
    with torch.no_grad():
        return student.generator(noise, condition, lambda k: torch.randn(noise.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize(
    ("call", "evaluations"),
    [({}, 1), ({"num_inference_steps": 2}, 2), ({"num_inference_steps": 3}, 3),
     ({"num_inference_steps": None, "timesteps": [22, 0]}, 2)],
)  # fmt: skip
def test_a_consistency_pipeline_is_a_student(consistency, call, evaluations):
    student = load_student(consistency)
    if "timesteps" in call:
        student = at_timesteps(student, call["timesteps"])
    elif evaluations > 1:
        student = student.with_nfe(evaluations)
    noise, labels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)), [2, 0, 3]
    wanted = theirs(consistency, noise, labels, torch.Generator().manual_seed(5), **call)
    made = ours(student, noise, labels, torch.Generator().manual_seed(5))
    assert student.nfe == evaluations and student.description.method == "published"
    assert wanted.std() > 0.05
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


def test_numbers_of_its_scheduler_are_followed(consistency, tmp_path):
    folder = copied(consistency, tmp_path / "other")
    change(
        folder / "scheduler" / "scheduler_config.json", num_train_timesteps=18, sigma_min=0.01, sigma_max=20.0,
        sigma_data=0.7, rho=5.0, clip_denoised=False,
    )  # fmt: skip
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    # Results far beyond black and white, which clipping would change on the way.
    save_file({k: 9 * v if k.startswith("conv_out") else v for k, v in load_file(weights).items()}, weights)
    student = at_timesteps(load_student(folder), [7, 3, 0])
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    # Images are cut at black and white, which the results in between are not.
    wanted = theirs(folder, noise, [1, 2], torch.Generator().manual_seed(5), num_inference_steps=None,
                    timesteps=[7, 3, 0])  # fmt: skip
    made = ours(student, noise, [1, 2], torch.Generator().manual_seed(5))
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    assert (made != load_student(consistency).with_nfe(3).sample(noise, Condition(labels=torch.tensor([1, 2])))).any()


def copied(folder, to):
    import shutil

    shutil.copytree(folder, to)
    return to


def test_samples_and_figures_of_a_consistency_pipeline(inside, consistency, tmp_path):
    done = inside("sample", consistency, "--num", "4", "--timesteps", "22,0", "--output", "two")
    assert done.returncode == 0 and "2 network evaluation(s) each" in done.stdout, done.stderr
    student = at_timesteps(load_student(consistency), [22, 0])
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "two").glob("*.png"))])
    assert np.array_equal(pictures, student(4, seed=0).permute(0, 2, 3, 1).numpy())
    for arguments, named in {
        ("--timesteps", "0,22"): "descending", ("--timesteps", "40,0"): "below 40",
        ("--timesteps", "22,9"): "end at 0", ("--lora", "x"): "--lora x",
        ("--timesteps", "22,0", "--steps", "2"): "--steps", ("--steps", "41"): "40 noise levels",
        ("--timesteps", "a,b"): "--timesteps", ("--solver", "heun"): "--solver",
    }.items():  # fmt: skip
        failed = inside("sample", consistency, *arguments)
        assert failed.returncode == 2 and named in failed.stderr, (arguments, failed.stderr)


def test_a_consistency_pipeline_starts_a_training_and_is_exported(consistency, tmp_path):
    from distillkit.students.load import initial_weights

    student = load_student(consistency).with_nfe(2)
    state, *_ = initial_weights(consistency, student.generator.denoiser)
    assert all(torch.equal(value, state[name]) for name, value in student.generator.denoiser.state_dict().items())
    export(student, "diffusers", tmp_path / "out")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    noise, more = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    again = pipeline(noise=noise, renoise=[more], class_labels=[1, 3], output_type="pt").images
    with torch.no_grad():
        own = student.generator(noise, Condition(labels=torch.tensor([1, 3])), lambda k: more)
    torch.testing.assert_close(again, own, rtol=1e-4, atol=1e-4)
    student.save(tmp_path / "kept")
    kept = load_student(tmp_path / "kept")
    assert torch.equal(kept(3, seed=1), student(3, seed=1)) and kept.with_nfe(3).nfe == 3
    assert at_timesteps(kept, [22, 0]).generator.sampler == at_timesteps(student, [22, 0]).generator.sampler


@pytest.mark.parametrize(
    ("values", "named"),
    [({"s_noise": 1.007}, "s_noise"), ({"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
     ({"num_train_timesteps": 10**12}, "num_train_timesteps"), ({"sigma_min": 90.0}, "sigma_min"),
     ({"rho": "seven"}, "rho")],
)  # fmt: skip
def test_a_scheduler_that_is_not_followed_is_refused(inside, consistency, tmp_path, values, named):
    folder = copied(consistency, tmp_path / "own")
    change(folder / "scheduler" / "scheduler_config.json", **values)
    failed = inside("sample", folder)
    assert failed.returncode == 2 and named in failed.stderr and len(failed.stderr.splitlines()) == 1, failed.stderr


@pytest.mark.parametrize(
    ("place", "values"),
    [("unet/config.json", {"_class_name": "UNet2DConditionModel"}), ("model_index.json", {"unet": ["own", "Own"]})],
)
def test_a_network_of_another_class_is_refused(consistency, tmp_path, place, values):
    folder = copied(consistency, tmp_path / "own")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    change(folder / place, **values)
    with pytest.raises(UsageError, match="not a UNet2DModel"):
        load_student(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_repositories_of_the_hub(consistency, where, tmp_path, monkeypatch):
    snapshots = tmp_path / "models--openai--cd_tiny" / "snapshots" / ("0" * 40)
    copied(consistency, snapshots)
    asked = []

    def snapshot_download(repository, revision=None, allow_patterns=None, **_):
        asked.append((repository, revision))
        return str(snapshots)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: ["unet/config.json"])
    name = str(snapshots) if where == "folder" else "hf:openai/cd_tiny@v1"
    student = load_student(name)
    assert student.description.imported.name == "cd_tiny"
    assert student.description.imported.source == f"hf:openai/cd_tiny@{'0' * 40}"
    assert set(asked) == (set() if where == "folder" else {("openai/cd_tiny", "v1")})


# Weights of EDM's networks


def golden_file(golden, which, folder):
    """A published file of the golden's network, as its program writes it; and its teacher's facts."""
    reference = golden(f"edm_{ {'dmd2': 'adm', 'sid': 'ddpmpp'}[which] }_small")
    constructor = reference.description["constructor"]
    denoiser = denoiser_of(constructor)
    denoiser.load_state_dict(reference.part("net."))
    if which == "sid":
        return write_network(folder / "network-snapshot-1.200000-403968.pkl", denoiser, constructor), denoiser
    path = folder / "pytorch_model.bin"
    torch.save(dict(denoiser.state_dict()), path)
    return path, denoiser


def facts_of(denoiser, name="edm-like"):
    from distillkit import ClassLabels, Pixels, TeacherSpec
    from distillkit.models.build import own_part

    network = denoiser.description
    return TeacherSpec(
        name=name, shape=(3, 16, 16), network=network, licence="of the teacher",
        conditioner=own_part(ClassLabels(classes=10, null_label=False)), codec=own_part(Pixels()),
    )  # fmt: skip


@pytest.mark.parametrize(("which", "level"), [("dmd2", 80.0), ("sid", 2.5)])
def test_one_step_generators_equal_their_own_code(golden, tmp_path, which, level):
    wanted = golden("published_students").part(f"{which}.")
    path, denoiser = golden_file(golden, which, tmp_path)
    teacher = facts_of(denoiser) if which == "dmd2" else None
    student = convert_student(path, [level], teacher=teacher, licence="CC BY 4.0")
    made = student.sample(wanted["noise"], Condition(labels=wanted["labels"]))
    torch.testing.assert_close(made, wanted["images"], rtol=1e-4, atol=1e-4)
    student.save(tmp_path / "student")
    again = load_student(tmp_path / "student")
    assert torch.equal(again.sample(wanted["noise"], Condition(labels=wanted["labels"])), made) and again.nfe == 1
    found = again.description.imported
    assert found.source == path.name and len(found.sha256) == 64 and found.name == path.stem
    text = card(again.description)
    assert f"imported from {path.name}" in text.replace("\\", "") and found.sha256 in text and "CC BY 4.0" in text
    assert again.description.teacher.name == ("edm-like" if teacher else "not recorded")


def test_several_levels_renoise_in_between(golden, tmp_path):
    path, denoiser = golden_file(golden, "sid", tmp_path)
    student = convert_student(path, [80.0, 0.8])
    assert student.nfe == 2 and student.generator.sampler == RenoisingSampler(levels=(80.0, 0.8))
    noise, more = torch.randn(2, 1, 3, 16, 16)
    with torch.no_grad():
        made = student.generator(noise, Condition(labels=torch.tensor([3])), lambda k: more)
        first = denoiser(80.0 * noise, torch.tensor([80.0]), Condition(labels=torch.tensor([3])))
        second = denoiser(first + 0.8 * more, torch.tensor([0.8]), Condition(labels=torch.tensor([3])))
    torch.testing.assert_close(made, second, rtol=1e-4, atol=1e-5)


def test_a_converted_student_is_one_for_every_command(inside, golden, tmp_path):
    golden_file(golden, "sid", tmp_path)
    file = "network-snapshot-1.200000-403968.pkl"
    done = inside("students", "convert", file, "--levels", "2.5", "--output-dir", "sid", "--name", "SiD small")
    assert done.returncode == 0 and "student in sid" in done.stdout, done.stderr
    assert "at sigma / alpha 2.5" in done.stdout
    # No protocol is for 16 x 16 pixels: the command without one would be refused.
    assert "distillkit evaluate sid --protocol NAME" in done.stdout
    assert not (tmp_path / "canary").exists()
    assert (tmp_path / "sid" / "README.md").read_text().count("# SiD small, published\n") == 1
    assert inside("sample", "sid", "--num", "4", "--output", "grid.png").returncode == 0
    assert inside("export", "sid", "out", "--to", "diffusers").returncode == 0
    described = json.loads((tmp_path / "sid" / "student.json").read_text())
    assert described["imported"]["source"] == file and described["sampler"]["t"] == 2.5
    again = inside("students", "convert", file, "--levels", "2.5", "--output-dir", "sid")
    assert again.returncode == 2 and "sid is there already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [(("weights.bin", "--levels", "80"), 2, "--teacher"), (("weights.bin", "--levels", "80", "--teacher", "digits"), 1,
      "do not fit"), (("net.pkl", "--levels", "2.5,80"), 2, "descending"), (("net.pkl", "--levels", "100"), 2,
      "from 0.002 to 80"), (("net.pkl", "--levels", "x"), 2, "--levels x"), (("none.pkl", "--levels", "2.5"), 2,
      "none.pkl"), (("evil.pkl", "--levels", "2.5"), 1, "posix.system"), (("hf:a", "--levels", "2.5"), 2, "hf:a"),
     (("net.pkl", "--levels", "nan"), 2, "--levels nan"), (("net.pkl", "--levels", "2.5", "--teacher",
      "edm-imagenet64"), 1, "is not edm-imagenet64"), (("folder", "--levels", "2.5"), 2, "folder is a folder: name"),
     (("folder/model.safetensors", "--levels", "2.5"), 2, "for: --teacher folder"),
     (("lora.bin", "--levels", "2.5", "--teacher", "digits"), 2, "holds a LoRA"),
     (("weights.bin", "--levels", "2.5", "--teacher", "digits"), 1, "do not fit the network of digits")],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(inside, golden, tmp_path, arguments, code, named):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'canary'}",)

    path, denoiser = golden_file(golden, "sid", tmp_path)
    path.rename(tmp_path / "net.pkl")
    torch.save(dict(denoiser.state_dict()), tmp_path / "weights.bin")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"ema": Evil()}))
    torch.save({"a.lora_up.weight": torch.ones(2, 2), "a.lora_down.weight": torch.ones(2, 2)}, tmp_path / "lora.bin")
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "folder" / "model.safetensors")
    (tmp_path / "folder" / "teacher.json").write_text("{}")
    failed = inside("students", "convert", *arguments, "--output-dir", "made")
    assert failed.returncode == code and named in failed.stderr, failed.stderr
    assert "Traceback" not in failed.stderr and not (tmp_path / "made").exists() and not (tmp_path / "canary").exists()


def test_files_of_the_hub(golden, tmp_path, monkeypatch):
    path, _ = golden_file(golden, "sid", tmp_path)
    asked = []

    def hf_hub_download(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    name = "hf:UT-Austin-PML/SiD/cifar10-uncond/alpha1.2/network-snapshot-1.200000-403968.pkl"
    student = convert_student(name, [2.5])
    assert asked == [("UT-Austin-PML/SiD", "cifar10-uncond/alpha1.2/network-snapshot-1.200000-403968.pkl", None)]
    assert student.description.imported.source == name
    assert hub.parts_of_file("hf:a/b/c/d.bin@v1") == ("a/b", "c/d.bin", "v1")
    for wrong in ("hf:a/b", "hf:a/b/../c", "hf:a/b//c", "hf:a/b/.ssh", "hf:/b/c"):
        with pytest.raises(UsageError, match="hf:ORG/REPO/FILE"):
            hub.parts_of_file(wrong)


def test_points_are_refused_where_there_are_too_few(tiny_teacher):
    sampler = ConsistencySampler(levels=(80.0,), points=18)
    assert sampler.with_nfe(3, tiny_teacher.denoiser).levels == tuple(tiny_teacher.schedule.grid(18).tolist()[::6][:3])
    with pytest.raises(ValueError, match="18 noise levels"):
        sampler.with_nfe(19, tiny_teacher.denoiser)


def test_a_student_of_edm2_is_one_too(golden, tmp_path):
    """SiDA's on EDM2, evaluated as SiD's."""
    reference = golden("edm2_small")
    kwargs = {**reference.description["constructor"], "use_fp16": True}
    path = write_snapshot(tmp_path / "net.pkl", small(reference), kwargs, Encoder("StandardRGBEncoder"))
    student = convert_student(path, [2.5])
    noise = torch.randn(2, *student.generator.shape, generator=torch.Generator().manual_seed(0))
    condition = Condition(labels=torch.tensor([1, 2]))
    with torch.no_grad():
        wanted = small(reference)(2.5 * noise, torch.full((2,), 2.5), condition)
    torch.testing.assert_close(student.sample(noise, condition), wanted, rtol=1e-4, atol=1e-4)
    student.save(tmp_path / "student")
    assert torch.equal(load_student(tmp_path / "student")(2, seed=3), student(2, seed=3))


@pytest.mark.parametrize("name", ["imagenet", "dit_patch2"])
def test_another_programs_layout_needs_its_teacher(inside, golden, tmp_path, name):
    reference = golden("guided_diffusion" if name == "imagenet" else "dit_and_sit")
    described = reference.description["cases"][name]
    torch.save(weights(described["shapes"], described["seed"]), tmp_path / "model.pt")
    failed = inside("students", "convert", "model.pt", "--levels", "80")
    assert failed.returncode == 2 and "--teacher" in failed.stderr and "--set" not in failed.stderr, failed.stderr
