"""Crops: weighted where people are, and often of heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from storyloom_training.config import VaeRecipe
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split
from storyloom_training.vae import draw_corner, draw_crops, reconstruction_loss, to_pictures

CROP = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StoryDB:
    data = StoryDB(tmp_path_factory.mktemp("storydb"), Split.TRAIN, groups=3, frames=2, size=64, mask_size=8)
    data.prepare()
    return data


def test_crops_lie_within_and_show_heads_more_often_than_chance(data: StoryDB) -> None:
    heads = np.zeros((3, 8, 8), np.uint8)
    heads[1, 0, 7] = 255  # one cell in the upper right corner: few crops drawn anywhere show all of it
    draw = torch.Generator().manual_seed(0)
    corners = [draw_corner(heads, data, CROP, draw) for _ in range(400)]
    assert all(0 <= y <= 32 and 0 <= x <= 32 for y, x in corners)
    shown = sum(y <= 4 < y + CROP and x <= 60 < x + CROP for y, x in corners)
    anywhere = sum(
        y <= 4 < y + CROP and x <= 60 < x + CROP
        for y, x in (draw_corner(np.zeros_like(heads), data, CROP, draw) for _ in range(400))
    )
    assert shown > 200 > 2 * anywhere


def test_weights_say_where_people_and_heads_are(data: StoryDB) -> None:
    recipe = VaeRecipe(batch=8, crop=64, people_weight=3.0, head_weight=5.0)
    crops = draw_crops(data, torch.Generator().manual_seed(1), recipe)
    pictures = to_pictures(crops.pixels)
    for picture, weight in zip(pictures, crops.weight, strict=True):
        index = next(i for i in range(len(data.pictures)) if np.array_equal(data.pictures[i], picture))
        people, heads = (part[index].max(0).repeat(8, 0).repeat(8, 1) / 255 for part in (data.masks, data.heads))
        np.testing.assert_allclose(weight[0], 1 + 3 * people + 5 * heads, rtol=1e-5)


def test_an_error_on_a_head_costs_more() -> None:
    true, weight = torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    weight[..., 2:6, 2:6] = 10
    on, off = true.clone(), true.clone()
    on[..., 3:5, 3:5] = 1
    off[..., 11:13, 11:13] = 1
    recipe = VaeRecipe()
    assert reconstruction_loss(on, true, weight, recipe) > 5 * reconstruction_loss(off, true, weight, recipe)
    assert reconstruction_loss(true, true, weight, recipe) == 0
