"""diffusers models as sigma denoisers, against diffusers' own schedulers."""

import json

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, EDMEulerScheduler, UNet2DModel

from distillkit import Condition, DistillkitError, UsageError, load_student, load_teacher
from distillkit.diffusion import euler, heun, karras_sigmas, vp_sigmas

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


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_levels_are_those_of_the_scheduler(schedule, zero_snr):
    theirs = DDIMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=zero_snr).alphas_cumprod.double()
    ours = vp_sigmas(1000, schedule, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=zero_snr)
    last = 1000 - zero_snr
    torch.testing.assert_close(
        ours[:last], ((1 - theirs) / theirs).sqrt()[:last], rtol=2e-2 if zero_snr else 2e-3, atol=0
    )
    assert ours.isfinite().all() != zero_snr


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@torch.no_grad()
def test_full_deterministic_sampling_equals_diffusers(unet, schedule, prediction, tmp_path):
    model = unet()
    scheduler = DDIMScheduler(
        beta_schedule=schedule, prediction_type=prediction, clip_sample=False, timestep_spacing="trailing"
    )
    teacher = load_teacher(save(tmp_path / "m", model, scheduler, pipeline=schedule == "linear"))
    noise = torch.randn(2, 3, 8, 8)

    scheduler.set_timesteps(50)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t).sample, t, x).prev_sample

    sigmas = vp_sigmas(1000, schedule, beta_start=1e-4, beta_end=0.02)[scheduler.timesteps]
    sigma_max = float(sigmas[0])
    # In this parametrisation the state at the first level is x sqrt(1 + sigma^2).
    start = noise * (1 + sigma_max**2) ** 0.5 / sigma_max
    ours = euler(lambda x, s: teacher(x, s, Condition()), start, torch.cat([sigmas, torch.zeros(1)]))
    assert (ours - x).abs().max() <= 2e-3 * x.abs().max()
    if schedule != "squaredcos_cap_v2":
        assert teacher.spec.sigma_max == pytest.approx(sigma_max, rel=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_edm_scheduler_equals_diffusers(unet, prediction, tmp_path):
    model, scheduler = unet(), EDMEulerScheduler(prediction_type=prediction)
    teacher = load_teacher(save(tmp_path / "m", model, scheduler))
    noise = torch.randn(2, 3, 8, 8)
    scheduler.set_timesteps(20)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    start = noise * scheduler.init_noise_sigma / float(scheduler.sigmas[0])
    ours = euler(lambda x, s: teacher(x, s, Condition()), start, scheduler.sigmas)
    assert (ours - x).abs().max() <= 2e-3 * x.abs().max()


@torch.no_grad()
def test_labels_learned_variance_and_files_of_torch_save(unet, tmp_path):
    model = unet(num_class_embeds=5, out_channels=6)
    folder = tmp_path / "m"
    save(folder, model, DDPMScheduler(variance_type="learned_range"))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "diffusion_pytorch_model.bin")
    teacher = load_teacher(str(folder))
    assert (teacher.spec.num_classes, teacher.spec.shape) == (5, (3, 8, 8))
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 4])
    level = torch.full((4,), float(vp_sigmas(1000, "linear", beta_start=1e-4, beta_end=0.02)[500]))
    expected = x - level[0] * model(x / (1 + level[0] ** 2).sqrt(), torch.tensor(500), labels).sample[:, :3]
    torch.testing.assert_close(teacher(x, level, Condition(labels=labels)), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match="guidance 1"):
        teacher(x, level, Condition(labels=labels), guidance=2.0)


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
    assert student.description.sampler["sigma"] == pytest.approx(157.4, rel=1e-2)


def change(folder, file, **values):
    path = folder / file
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize(
    ("spoil", "error", "fragment"),
    [
        (lambda f: change(f, "config.json", _class_name="Transformer2DModel"), UsageError, "Transformer2DModel"),
        (lambda f: change(f, "scheduler_config.json", _class_name="ScoreSdeVeScheduler"), UsageError, "ScoreSdeVe"),
        (lambda f: change(f, "scheduler_config.json", prediction_type="flow"), DistillkitError, "'flow'"),
        (lambda f: change(f, "scheduler_config.json", beta_schedule="sigmoid"), DistillkitError, "'sigmoid'"),
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
    teacher = load_teacher("hf:org/tiny@abc")
    assert asked == [("org/tiny", "abc")] and teacher.spec.name == "tiny"
    out = heun(lambda x, s: teacher(x, s, Condition()), torch.randn(1, 3, 8, 8), karras_sigmas(4, sigma_max=100))
    assert out.isfinite().all()
