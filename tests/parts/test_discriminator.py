"""Discriminator heads for features of any rank."""

import pytest
import torch
from torch import nn

from distillkit import Condition
from distillkit.parts import (
    GAN_LOSSES,
    DiscriminatorHead,
    PlaceHead,
    accuracy,
    discriminator_loss,
    generator_loss,
    head_for,
    place_head_for,
)
from tests.parts.toys import SHAPES, toy_teacher


@pytest.mark.parametrize(
    "shape", [(5,), (7, 16), (8, 1, 1), (8, 2, 2), (8, 5, 7), (8, 64, 64), (8, 3, 4, 4), (8, 1, 16, 9)]
)
def test_one_logit_for_features_of_any_rank(shape):
    head = DiscriminatorHead([torch.zeros(1, *shape)])
    features = torch.randn(3, *shape, requires_grad=True)
    logits = head([features])
    assert logits.shape == (3, shape[0] if len(shape) == 2 else 1)
    logits.sum().backward()
    assert (features.grad.flatten(1).abs().max(1).values > 0).all()


def test_an_eight_by_eight_bottleneck_has_the_papers_head():
    head = head_for((1, 768, 8, 8))
    convolutions = [(m.kernel_size[0], m.stride[0]) for m in head if isinstance(m, nn.Conv2d)]
    assert convolutions == [(4, 2), (4, 4), (1, 1)]
    assert [m.num_groups for m in head if isinstance(m, nn.GroupNorm)] == [32, 32]


@pytest.mark.parametrize("channels", [3, 8, 48, 100, 256, 320])
def test_groups_divide_the_channels_and_keep_eight_of_them(channels):
    [norm] = (m for m in head_for((1, channels, 4, 4)) if isinstance(m, nn.GroupNorm))
    assert channels % norm.num_groups == 0 and norm.num_groups <= 32
    assert norm.num_groups == 1 or channels // norm.num_groups >= 8


def test_several_layers_have_logits_side_by_side():
    features = [torch.randn(2, 5), torch.randn(2, 4, 6)]
    head = DiscriminatorHead(features)
    found = head(features)
    assert found.shape == (2, 1 + 4)
    torch.testing.assert_close(found, torch.cat([head.heads[0](features[0]), head.heads[1](features[1])[..., 0]], 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_head_fits_the_denoisers_own_features(shape):
    teacher = toy_teacher("flow", shape)
    head = DiscriminatorHead.on(teacher.denoiser, teacher)
    x = torch.randn(3, *SHAPES[shape])
    condition = Condition(labels=torch.tensor([0, 1, 2]))
    assert head(teacher.denoiser.features(x, torch.full((3,), 0.5), condition)).shape[0] == 3


def test_losses_and_accuracy():
    fake, real = torch.tensor([-9.0, -9.0]), torch.tensor([9.0, -9.0])
    assert accuracy(fake, real) == 0.75
    assert generator_loss(fake).item() == pytest.approx(9, abs=1e-3)
    assert discriminator_loss(fake, real).item() == pytest.approx(4.5, abs=1e-3)


def test_hinge_losses():
    fake, real = torch.tensor([[-2.0, 0.5]]), torch.tensor([[3.0, -1.0]])
    assert GAN_LOSSES["hinge"].generator(fake).item() == pytest.approx(0.75)
    assert GAN_LOSSES["hinge"].discriminator(fake, real).item() == pytest.approx(1.5 / 2 + 2 / 2)


@pytest.mark.parametrize("shape", [(8, 5, 7), (16, 2, 3, 4)])
def test_heads_of_places_judge_every_place_of_a_map(shape):
    head = place_head_for((1, *shape))
    assert isinstance(head, PlaceHead)
    logits = DiscriminatorHead([torch.zeros(1, *shape)], place_head_for)([torch.randn(3, *shape)])
    assert logits.shape == (3, torch.Size(shape[1:]).numel())
    assert not isinstance(place_head_for((1, 9, 4)), PlaceHead)
