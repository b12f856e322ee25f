"""The commands in the document about published students, on tiny stand-ins for what they name."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from distillkit.benchmark.suite import load_suite
from distillkit.models.store.folder import read_teacher
from tests.conftest import denoiser_of
from tests.foreign.edm_format import write_network
from tests.models.pipelines import sdxl, stable_diffusion
from tests.published import consistency_pipeline, write_replacements

DOCUMENTS = Path(__file__).parents[2] / "docs"
DOCUMENT = DOCUMENTS / "students.md"
NOT_RUN = ("run",)


def commands():
    """Those of the section, their lines joined."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.partition("## Students that others have published\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\$ distillkit (.*)$", section.replace("\\\n", " "), re.M)
    assert len(found) >= 10
    return [shlex.split(line) for line in found]


@pytest.fixture
def stand_ins(tmp_path, monkeypatch, tiny_teacher_folder):
    """Everything that the commands name, and who asked for what."""
    hub, asked = tmp_path / "hub", set()
    hub.mkdir()
    base = {"sd": stable_diffusion(hub / "sd"), "sdxl": sdxl(hub / "sdxl")}
    for name, place in base.items():
        write_replacements(hub, name, place)
    lcm = stable_diffusion(hub / "lcm", noise="LCM", time_cond_proj_dim=8)
    turbo = sdxl(hub / "turbo", noise="EulerAncestralDiscrete", options={"timestep_spacing": "trailing"})
    constructor = {
        "img_resolution": 32, "img_channels": 3, "label_dim": 0, "sigma_data": 0.5, "model_type": "SongUNet",
        "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
        "label_dropout": 0, "augment_dim": 0,
    }  # fmt: skip
    places = {
        "openai/diffusers-cd_imagenet64_l2": consistency_pipeline(hub / "cd", 1000),
        "openai/diffusers-ct_imagenet64": hub / "cd", "stabilityai/sdxl-turbo": turbo,
        "SimianLuo/LCM_Dreamshaper_v7": lcm, "stable-diffusion-v1-5/stable-diffusion-v1-5": base["sd"],
        "stabilityai/stable-diffusion-xl-base-1.0": base["sdxl"],
    }  # fmt: skip
    files = {
        ("UT-Austin-PML/SiD", "cifar10-uncond/alpha1.2/network-snapshot-1.200000-403968.pkl"): write_network(
            hub / "sid.pkl", denoiser_of(constructor), constructor
        ),
        ("latent-consistency/lcm-lora-sdv1-5", "pytorch_lora_weights.safetensors"): hub / "sd-kohya.safetensors",
        ("ByteDance/SDXL-Lightning", "sdxl_lightning_4step_unet.safetensors"): hub / "sdxl_2step_unet.safetensors",
        ("ByteDance/Hyper-SD", "Hyper-SDXL-1step-lora.safetensors"): hub / "sdxl-kohya.safetensors",
        ("tianweiy/DMD2", "dmd2_sdxl_4step_unet_fp16.bin"): hub / "sdxl_4step_unet.bin",
    }

    def snapshot_download(repository, **_):
        asked.add(repository)
        return str(places[repository])

    def hf_hub_download(repository, file, **_):
        asked.add(repository)
        return str(files[repository, file])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: ["unet/config.json"])
    teacher = shutil.copytree(tiny_teacher_folder, tmp_path / "edm-imagenet64")
    tiny = read_teacher(teacher / "teacher.json", teacher / "model.safetensors")
    torch.save(dict(tiny.denoiser.state_dict()), tmp_path / "pytorch_model.bin")
    return set(places) | {repository for repository, _ in files}, asked


def test_every_command_runs(inside, stand_ins, tmp_path):
    named, asked = stand_ins
    for command in commands():
        if command[0] in NOT_RUN:
            continue
        place = command.index("--protocol") if "--protocol" in command else len(command)
        words = command[:place] + command[place + 2 :]
        if words[0] in ("sample", "evaluate"):
            # What a protocol measures needs its statistics; the samples are the same.
            text = "stable-diffusion-v1-5" in words[1]
            words = ["sample", *words[1:], "--num", "2", "--output", "grid.png"] + ["--prompt", "a cat"] * text
        if "edm-imagenet64" in words:
            words[words.index("edm-imagenet64")] = "./edm-imagenet64"
        done = inside(*words)
        assert done.returncode == 0, (words, done.stderr)
    assert asked == named


def test_every_suite_is_one(tmp_path):
    text = (DOCUMENTS / "benchmarks.md").read_text(encoding="utf-8")
    section = text.partition("## Published students\n")[2].partition("\n## ")[0]
    suites = re.findall(r"```yaml\n(.*?)```", section, re.S)
    (tmp_path / "sid-imagenet64").mkdir()
    for number, suite in enumerate(suites):
        (tmp_path / f"{number}.yaml").write_text(suite)
    pixels, words = (load_suite(tmp_path / f"{number}.yaml") for number in range(len(suites)))
    assert [*pixels.published] == ["sid", "cd", "cd-2"] and pixels.published["cd-2"].timesteps == (22, 0)
    assert Path(pixels.published["sid"].subject) == tmp_path / "sid-imagenet64"
    assert words.budget is None and words.published["hyper-sd"].assembly.eta == 1
