"""diffusers models as teachers, against diffusers' own schedulers."""

import json

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

from distillkit import Condition, DistillkitError, UsageError, build_denoiser, load_student, load_teacher
from distillkit.models.store.resolve import resolve

SMALL = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (8, 16),
         "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
         "norm_num_groups": 4, "attention_head_dim": 8}  # fmt: skip


@pytest.fixture
def unet():
    def make(**changes):
        torch.manual_seed(0)
        return UNet2DModel(**{**SMALL, **changes}).eval()

    return make


def save(folder, model, scheduler, *, pipeline=False):
    if pipeline:
        DDIMPipeline(model, scheduler).save_pretrained(folder)
    else:
        model.save_pretrained(folder)
        scheduler.save_pretrained(folder)
    return str(folder)


def same(ours, theirs, tolerance=1e-4):
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@torch.no_grad()
def by_diffusers(model, scheduler, noise, labels=None):
    """What the scheduler makes of the noise, with its own loop."""
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t, labels).sample[:, :3], t, x).prev_sample
    return x


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim_sampling_equals_diffusers(unet, betas, prediction, spacing, tmp_path):
    model = unet()
    scheduler = DDIMScheduler(
        beta_schedule=betas, prediction_type=prediction, clip_sample=False, timestep_spacing=spacing,
        steps_offset=int(spacing == "leading"),
    )  # fmt: skip
    teacher = load_teacher(save(tmp_path / "m", model, scheduler, pipeline=betas == "linear"))
    noise = torch.randn(2, 3, 8, 8)
    scheduler.set_timesteps(50)
    assert teacher.schedule.grid(50).tolist() == scheduler.timesteps.tolist()
    ours = teacher.sample(noise, Condition(), steps=50, solver="ddim")
    same(ours, by_diffusers(model, scheduler, noise))


@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_zero_terminal_snr_equals_diffusers(unet, betas, tmp_path):
    model = unet()
    scheduler = DDIMScheduler(
        beta_schedule=betas, prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    teacher = load_teacher(save(tmp_path / "m", model, scheduler))
    noise = torch.randn(2, 3, 8, 8)
    scheduler.set_timesteps(50)
    same(teacher.sample(noise, Condition(), steps=50, solver="ddim"), by_diffusers(model, scheduler, noise))
    assert torch.equal(teacher.schedule.start(noise), noise)


def test_predicted_noise_with_zero_terminal_snr_is_refused(unet, tmp_path):
    folder = save(tmp_path / "m", unet(), DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(UsageError, match="rescale_betas_zero_snr") as refused:
        load_teacher(folder)
    assert "scheduler_config.json" in str(refused.value)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_edm_scheduler_equals_diffusers(unet, prediction, tmp_path):
    model = unet()
    scheduler = EDMEulerScheduler(prediction_type=prediction, sigma_max=70.0, sigma_min=0.01, sigma_data=0.6, rho=6.0)
    teacher = load_teacher(save(tmp_path / "m", model, scheduler))
    noise = torch.randn(2, 3, 8, 8)
    scheduler.set_timesteps(20)
    # diffusers starts with sqrt(sigma_max^2 + 1) noise, ours with sigma_max noise.
    x = noise * float(scheduler.sigmas[0])
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    same(teacher.sample(noise, Condition(), steps=20, solver="euler"), x)
    assert (teacher.schedule.sigma_max, teacher.denoiser.sigma_data) == (70.0, 0.6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_equals_diffusers(unet, shift, tmp_path):
    model, scheduler = unet(num_class_embeds=4), FlowMatchEulerDiscreteScheduler(shift=shift)
    teacher = load_teacher(save(tmp_path / "m", model, scheduler))
    noise, keys = torch.randn(2, 3, 8, 8), torch.tensor([3, 0])
    # Even times, to which the scheduler applies its shift, as pipelines ask it for them.
    scheduler.set_timesteps(sigmas=[(20 - k) / 20 for k in range(20)])
    ours = teacher.sample(noise, teacher.conditioner.encode(keys), steps=20, solver="euler")
    same(ours, by_diffusers(model, scheduler, noise, keys))
    torch.testing.assert_close(teacher.schedule.grid(20).float(), scheduler.sigmas[:-1])


def test_what_a_scheduler_leaves_out_is_its_class_default(unet, tmp_path):
    save(tmp_path / "m", unet(), DDPMScheduler())
    (tmp_path / "m" / "scheduler_config.json").write_text('{"_class_name": "EulerDiscreteScheduler"}')
    schedule = load_teacher(str(tmp_path / "m")).schedule
    assert (schedule.spacing, schedule.betas, schedule.steps) == ("linspace", "linear", 1000)


@torch.no_grad()
def test_labels_learned_variance_and_files_of_torch_save(unet, tmp_path):
    model = unet(num_class_embeds=5, out_channels=6)
    folder = tmp_path / "m"
    save(folder, model, DDPMScheduler(variance_type="learned_range"))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "diffusion_pytorch_model.bin")
    teacher = load_teacher(str(folder))
    assert (teacher.conditioner.count, teacher.conditioner.has_null, teacher.spec.shape) == (5, False, (3, 8, 8))
    x, keys = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 4])
    remaining = DDPMScheduler().alphas_cumprod[500]
    predicted = model(x, torch.tensor(500), keys).sample[:, :3]
    expected = (x - (1 - remaining).sqrt() * predicted) / remaining.sqrt()
    condition = teacher.conditioner.encode(keys)
    torch.testing.assert_close(teacher(x, torch.full((4,), 500.0), condition), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match="guidance 1"):
        teacher(x, torch.full((4,), 500.0), condition, guidance=2.0)


def test_a_folder_is_described_without_its_weights(unet, tmp_path):
    folder = save(tmp_path / "m", unet(), DDPMScheduler())
    loaded = load_teacher(folder)
    (tmp_path / "m" / "diffusion_pytorch_model.safetensors").unlink()
    reference = resolve(folder)
    assert reference.spec == loaded.spec.model_copy(update={"weights_sha256": ""})
    assert reference.fresh(0).schedule == loaded.schedule


def test_classes_have_the_names_that_the_pipeline_gives_them(unet, tmp_path):
    folder = save(tmp_path / "m", unet(num_class_embeds=2), DDPMScheduler(), pipeline=True)
    change(tmp_path / "m", "model_index.json", id2label={"0": "cat", "1": "dog"})
    assert load_teacher(folder).conditioner.parse(["dog", "0"]).tolist() == [1, 0]


@torch.no_grad()
def test_a_description_builds_the_same_network(unet, tmp_path):
    teacher = load_teacher(save(tmp_path / "m", unet(), DDPMScheduler()))
    again = build_denoiser(json.loads(json.dumps(teacher.denoiser.description)))
    again.load_state_dict(teacher.denoiser.state_dict())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    assert again.schedule == teacher.schedule
    torch.testing.assert_close(again.eval()(x, t, Condition()), teacher(x, t, Condition()))


def test_a_diffusers_teacher_is_distilled_and_its_student_is_loaded(unet, inside, tmp_path):
    folder = save(tmp_path / "ddpm-tiny", unet(), DDPMScheduler(), pipeline=True)
    done = inside(
        "run", "dmd", "--teacher", folder, "--distance", "l2", "--duration", "16", "--batch", "8", "--pairs-count", "8",
        "--pairs-steps", "3", "--output-dir", "r", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    student = load_student(tmp_path / "r")
    pixels = student(3, seed=1)
    assert pixels.shape == (3, 3, 8, 8) and pixels.dtype == torch.uint8
    assert student.generator.schedule == load_teacher(folder).schedule


def change(folder, file, **values):
    path = folder / file
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize(
    ("spoil", "error", "fragment"),
    [
        (lambda f: change(f, "config.json", _class_name="Transformer2DModel"), UsageError, "Transformer2DModel"),
        (lambda f: change(f, "scheduler_config.json", _class_name="ScoreSdeVeScheduler"), UsageError, "ScoreSdeVe"),
        (lambda f: change(f, "scheduler_config.json", prediction_type="flow"), UsageError, "'flow'"),
        (lambda f: change(f, "scheduler_config.json", beta_schedule="sigmoid"), UsageError, "'sigmoid'"),
        (lambda f: change(f, "scheduler_config.json", trained_betas=[0.1]), UsageError, "trained_betas"),
        (lambda f: change(f, "config.json", sample_size=...), UsageError, "sample_size"),
        (lambda f: change(f, "config.json", class_embed_type="timestep"), UsageError, "class_embed_type"),
        (lambda f: change(f, "config.json", block_out_channels=[8, 24]), DistillkitError, "do not fit"),
        (lambda f: change(f, "config.json", what=1), DistillkitError, "what"),
        (lambda f: (f / "scheduler_config.json").unlink(), UsageError, "scheduler_config.json is missing"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), UsageError, "has no weights"),
        (lambda f: (f / "config.json").write_text("{"), DistillkitError, "config.json"),
        (lambda f: (f / "model_index.json").write_text('{"vae": ["diffusers", "x"]}'), UsageError, "VAE"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n."), DistillkitError,
         "os.system"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_named(unet, tmp_path, spoil, error, fragment):
    save(tmp_path / "m", unet(), DDPMScheduler())
    spoil(tmp_path / "m")
    with pytest.raises(error) as raised:
        load_teacher(str(tmp_path / "m"))
    assert fragment in str(raised.value)


@pytest.mark.parametrize(("name", "fragment"), [("hf:only", "hf:ORG/REPO"), ("hf:a/b", "cannot be had")])
def test_hub_names(name, fragment, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DistillkitError, match=fragment):
        load_teacher(name)


def test_a_hub_snapshot_in_the_cache_is_loaded(unet, tmp_path, monkeypatch):
    folder = tmp_path / "models--org--tiny" / "snapshots" / "abc"
    save(folder, unet(), DDPMScheduler())
    asked = []

    def snapshot_download(name, revision=None, allow_patterns=None):
        asked.append((name, revision))
        assert "*.bin" not in allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name, revision=None: [])
    teacher = load_teacher("hf:org/tiny@abc")
    assert asked == [("org/tiny", "abc")] and teacher.spec.name == "tiny"
    assert teacher.sample(torch.randn(1, 3, 8, 8), Condition(), steps=4).isfinite().all()
