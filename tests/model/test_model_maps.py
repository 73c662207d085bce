"""The stack of maps of a pass: sizes, averages, and that nothing is counted twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from storyloom_model.maps import ForegroundRule, MapStack, layer_size, united_mask


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 4))
def test_the_size_of_a_level_follows_from_its_positions(height: int, width: int, level: int) -> None:
    """Against what strided convolutions with padding 1 do, level by level."""
    picture = torch.zeros(1, 1, height, width)
    for _ in range(level):
        picture = F.conv2d(picture, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
    assert layer_size((height, width), picture.numel()) == tuple(picture.shape[2:])


def test_the_average_is_over_all_layers_so_far() -> None:
    stack = MapStack()
    with pytest.raises(LookupError):
        stack.average((4, 4))
    stack.add(torch.full((1, 1, 16), 0.2), (4, 4))
    assert stack.average((4, 4)).mean() == pytest.approx(0.2)
    stack.add(torch.full((1, 1, 4), 0.8), (2, 2))
    assert stack.average((4, 4)).mean() == pytest.approx(0.5)
    assert stack.average((4, 4)).mean() == pytest.approx(0.5)
    assert stack.average((8, 8)).shape == (1, 1, 8, 8)


def test_maps_are_resized_where_they_lie() -> None:
    stack = MapStack()
    maps = torch.zeros(1, 1, 4, 4)
    maps[..., :2, 2:] = 1
    stack.add(maps.flatten(-2), (4, 4))
    assert stack.average((2, 2)).tolist() == [[[[0, 1], [0, 0]]]]


def test_a_mask_unites_the_characters() -> None:
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0, 0, 0] = maps[0, 1, 1, 1] = 0.01
    assert united_mask(maps, ForegroundRule()).tolist() == [[True, False, False, True]]
