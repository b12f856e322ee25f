"""Gradient checkpointing in every family: the same gradients, and less that is kept."""

import copy

import pytest
import torch

from distillkit import Condition, StudentGenerator, load_teacher
from distillkit.engine.config import TrainingConfig
from distillkit.engine.preparation import checkpoint_gradients, prepare_networks
from distillkit.jobs.step_costs import SavedBytes
from distillkit.models.build import build_denoiser
from distillkit.testing.teachers import conditional, smallest
from tests.models import pipelines

FAMILIES = {
    "Stable Diffusion": pipelines.stable_diffusion, "XL": pipelines.sdxl, "DiT": pipelines.dit,
    "PixArt": pipelines.pixart, "Stable Diffusion 3": pipelines.sd3, "Flux": pipelines.flux,
}  # fmt: skip
POINTS = {"kind": "distillkit:PointMLP", "arguments": {"network": {"width": 16, "layers": 4}}}
PIXELS = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "sample_size": 8, "in_channels": 3, "out_channels": 3,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip


def networks(name, folder):
    """(a network of the family, samples and times that it takes, conditions)."""
    if name in FAMILIES:
        teacher = load_teacher(str(FAMILIES[name](folder / "tiny")))
        condition = teacher.conditioner.encode(teacher.conditioner.in_turn(range(2)) if name == "DiT" else
                                               teacher.conditioner.parse(["a cat", "a dog"]))  # fmt: skip
        schedule = teacher.schedule
        return teacher.copy_denoiser(), torch.randn(2, *teacher.spec.shape), 0.5 * schedule.t_max, condition
    if name == "EDM":
        teacher = conditional()
        return teacher.copy_denoiser(), torch.randn(2, 1, 8, 8), 1.0, Condition(labels=torch.tensor([1, 2]))
    if name == "points":
        return build_denoiser(POINTS), torch.randn(2, 2), 1.0, Condition()
    arguments = {"network": PIXELS, "schedule": {"kind": "vp"}, "prediction": "epsilon"}
    return build_denoiser({"kind": "distillkit:UNet2DModel", "arguments": arguments}), torch.randn(2, 3, 8, 8), 500.0, \
        Condition()  # fmt: skip


@pytest.mark.parametrize("name", [*FAMILIES, "EDM", "points", "pixels"])
def test_activations_that_are_computed_anew_change_no_gradient(name, tmp_path):
    torch.manual_seed(0)
    network, x, t, condition = networks(name, tmp_path)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found, kept = [], []
    for anew in (False, True):
        one, given = copy.deepcopy(network).eval(), x.clone().requires_grad_()
        if anew:
            assert checkpoint_gradients(one)
        with SavedBytes(one.parameters()).counting() as counted:
            loss = one(given, torch.full((2,), t), condition).square().mean()
            kept.append(counted.alive)
        loss.backward()
        found.append([given.grad, *(p.grad for p in one.parameters() if p.grad is not None)])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-7)
    assert found[0][0].abs().max() > 0 and kept[1] < kept[0]


def test_a_network_without_the_switch_is_named():
    said, student = [], StudentGenerator.from_teacher(smallest())
    prepare_networks(TrainingConfig(gradient_checkpointing=True), (student,), (), (), said.append)
    [line] = said
    assert "--gradient-checkpointing" in line and "keeps all" in line
    said.clear()
    prepare_networks(TrainingConfig(gradient_checkpointing=True), (conditional().copy_denoiser(),), (), (), said.append)
    assert said == []
