"""Pictures of points: framed by the points themselves, whatever their range or dimension; text under pictures."""

import numpy as np
import pytest
import torch

from distillkit.captions import MOST_LINES, font_for, wrapped
from distillkit.pictures import GAP, grid, points_picture


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


def test_a_text_stands_under_its_own_picture_and_rows_without_any_have_no_room():
    pixels = torch.zeros(5, 3, 64, 64, dtype=torch.uint8)
    plain = grid(pixels, 2, enlarge=False)
    assert plain.size == (2 * 64 + GAP, 3 * 64 + 2 * GAP)
    picture = grid(pixels, 2, enlarge=False, captions=["", "", "", "hello", ""])
    seen, height = np.asarray(picture.convert("L")), picture.size[1] - plain.size[1]
    assert 10 < height < 40, "one row has one line"
    text = seen[2 * 64 + GAP : 2 * 64 + GAP + height]
    assert (text[:, :64] == 255).all() and (text[:, 66:] < 100).any()
    assert grid(pixels[:1], 1, captions=["hello"]).size[0] >= 112, "it is enlarged until the text can be read"
    assert np.array_equal(np.asarray(plain), np.asarray(grid(pixels, 2, enlarge=False, captions=[""] * 5)))


@pytest.mark.parametrize("text", ["x" * 5000, "many words " * 100, "猫" * 300, "\x1b[31m\n\n red", "", "short"])
def test_any_text_is_a_few_lines_no_wider_than_the_picture(text):
    font = font_for(112)
    lines = wrapped(text, 106, font)
    assert len(lines) <= MOST_LINES and all(font.getlength(line) <= 106 for line in lines)
    assert all(line.isprintable() for line in lines)
    assert (lines[-1].endswith("...") if len(text) > 500 else True) and (
        lines == ["short"] if text == "short" else True
    )
