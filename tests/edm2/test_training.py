"""Trainings of EDM2's networks: the uncertainty is learnt, weights stay normalised, whatever holds them."""

from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from distillkit import ClassLabels, Condition, TeacherSpec, load_student, load_teacher
from distillkit.models.build import own_part
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.edm2.denoiser import LogVariance
from distillkit.models.edm2.vae import StabilityVAE
from distillkit.models.store.folder import fresh_teacher, write_teacher
from distillkit.parts import uncertainty_weighted_error
from distillkit.testing import TEACHERS
from tests.edm2.small import description_of
from tests.models import pipelines

HERE = Path(__file__).parent


def test_networks_in_parts_give_what_whole_ones_give(together):
    for rank, one in enumerate(together(HERE / "in_parts.py")):
        assert one.stdout.split() == ["teacher-training", "dmd2", f"done:{rank}"], one.stderr[-3000:]


def uncertainty(teacher):
    with torch.no_grad():
        return teacher.denoiser.log_variance(torch.tensor([0.1, 1.0, 10.0]))


FEW = ["--duration", "96", "--batch", "16", "--warmup", "0", "--log-every", "16", "--sample-every", "96",
       "--checkpoint-every", "48", "--quiet", "--protocol", "none"]  # fmt: skip


def test_a_teacher_of_latents_is_trained_from_pictures_with_the_paper_s_settings(inside, golden, tmp_path):
    """`--like` an EDM2 teacher: its latents and network, its noise levels and rates, and its uncertainty, learnt."""
    rng = np.random.default_rng(0)
    for k in range(12):
        (tmp_path / "pictures" / str(k % 2)).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        picture.save(tmp_path / "pictures" / str(k % 2) / f"{k}.png")
    pipelines.quiet()
    pipelines.vae().save_pretrained(tmp_path / "autoencoder")
    codec = StabilityVAE(parts=PipelineParts(source=str(tmp_path / "autoencoder")), factor=2)
    constructor = {**golden("edm2_small").description["constructor"], "img_channels": 4, "label_dim": 2}
    spec = TeacherSpec(
        name="tiny", shape=(4, 8, 8), network=description_of(constructor), solver_steps=3,
        conditioner=own_part(ClassLabels(classes=2, null_label=False)), codec=own_part(codec),
    )  # fmt: skip
    fresh = fresh_teacher(spec, 0)
    write_teacher(tmp_path / "like", fresh.denoiser.state_dict(), spec)
    done = inside("teachers", "train", "cats", "--like", tmp_path / "like", "--data", tmp_path / "pictures", *FEW,
                  "--output-dir", "t")  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "t" / "config.yaml").read_text())
    assert (config["loss"]["noise_mean"], config["loss"]["noise_std"], config["loss"]["label_dropout"]) == (-0.4, 1, 0)
    training = config["training"]
    assert (training["lr"], training["lr_schedule"], training["beta2"]) == (0.01, "inverse-sqrt", 0.99)
    teacher = load_teacher(str(tmp_path / "t" / "teacher"))
    assert teacher.codec.means == codec.means and teacher.spec.network == fresh.spec.network
    before = uncertainty(fresh)
    assert (uncertainty(teacher) - before).abs().max() > 1e-3
    sample = teacher.codec.decode(teacher.sample(torch.randn(1, 4, 8, 8), Condition(labels=torch.tensor([1]))))
    assert sample.shape == (1, 3, 16, 16)
    run = inside("run", "dmd", "--teacher", "t/teacher", "--distance", "l2", "--duration", "32", "--batch", "8",
                 "--pairs-count", "8", "--pairs-steps", "3", "--output-dir", "r", "--quiet", "--protocol",
                 "none")  # fmt: skip
    assert run.returncode == 0, run.stderr
    student = load_student(str(tmp_path / "r" / "student"))
    assert student(2, seed=0).shape == (2, 3, 16, 16)
    export = inside("export", "r", "e", "--to", "diffusers")
    assert export.returncode == 2 and "EDM2UNet is not one of diffusers'" in export.stderr


def test_the_uncertainty_comes_to_be_the_logarithm_of_the_loss():
    """Trained alone on a loss that depends on the level, u is its logarithm."""
    torch.manual_seed(0)
    denoiser = TEACHERS["magnitude-preserving"]().denoiser
    denoiser.requires_grad_(False).logvar = LogVariance(32).requires_grad_(True)
    levels = torch.tensor([0.1, 1.0, 10.0])
    loss = torch.tensor([0.2, 1.0, 3.0])
    x0 = torch.zeros(3, 1, 1, 1)
    denoised = (loss / denoiser.loss_weight(levels)).sqrt().view(3, 1, 1, 1)
    optimizer = torch.optim.Adam(denoiser.logvar.parameters(), lr=0.03, betas=(0.9, 0.99))
    for _ in range(200):
        optimizer.zero_grad()
        uncertainty_weighted_error(denoiser, denoised, x0, levels).backward()
        optimizer.step()
    found = denoiser.log_variance(levels).detach()
    assert found.std() > 0.3 and torch.corrcoef(torch.stack([found, loss.log()]))[0, 1] > 0.99
