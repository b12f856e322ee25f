"""Pictures of points: framed by the points themselves, whatever their range or dimension."""

import pytest
import torch

from distillkit.pictures import points_picture


@pytest.mark.parametrize("scale", [1e-3, 0.7, 500.0])
@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_points_fill_the_picture_whatever_their_range(scale, dimension):
    points = 100 + scale * torch.randn(5000, dimension, generator=torch.Generator().manual_seed(0))
    picture = points_picture(points, size=64)
    assert picture.shape == (1, 64, 64) and picture.dtype == torch.uint8
    dark = (picture[0] < 250).nonzero()
    assert (dark[:, 1].max() - dark[:, 1].min()) > 40, "they span the picture"
    if dimension > 1:
        assert (dark[:, 0].max() - dark[:, 0].min()) > 40


def test_a_given_frame_and_orientation():
    picture = points_picture(torch.tensor([[0.9, 0.9]] * 5), size=10, half=1.0)
    assert (picture[0] < 255).nonzero().tolist() == [[0, 9]], "right and up"


@pytest.mark.parametrize("points", [torch.empty(0, 2), torch.zeros(7, 2), torch.full((3, 2), torch.nan)])
def test_nothing_one_place_and_broken_points_make_a_picture(points):
    assert points_picture(points, size=16).shape == (1, 16, 16)
