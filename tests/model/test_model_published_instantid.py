"""InstantID: its adapter against diffusers' projection, its drawing against OpenCV's, its ControlNet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from storyloom_model.identity.adapter import CharacterIdentity
from storyloom_model.identity.published.adapters import read_adapter
from storyloom_model.identity.published.forms import detect
from storyloom_model.identity.published.instantid import FACE_LENGTH, draw_face
from storyloom_model.identity.published.layers import attention_layers
from tests.model.published_files import (
    adapter_shapes,
    full_size_unet,
    identity,
    meta_weights,
    nested,
    published_unet,
    random_weights,
)

LANDMARKS = [(60.4, 70.9), (121.2, 66.0), (92.7, 101.3), (66.5, 130.2), (118.9, 127.7)]


@torch.inference_mode()
def test_tokens_are_those_that_diffusers_makes() -> None:
    unet = published_unet()
    weights = random_weights(adapter_shapes("instantid", attention_layers(unet)))
    maker = read_adapter("instantid", "test", weights, unet).maker
    theirs: Any = unet._convert_ip_adapter_image_proj_to_diffusers(nested(weights)["image_proj"], False)
    cast = {"mia": CharacterIdentity(identity(1))}
    face = FACE_LENGTH * torch.tensor(identity(1).references[0].face)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(maker.streams(cast)[0].tokens, theirs(face[None, None])[0], **close)
    nothing = theirs(torch.zeros(1, 1, 512))[0]
    torch.testing.assert_close(maker.negative_streams(cast)[0].tokens, nothing, **close)


def test_the_full_size_file_fits_sdxl() -> None:
    sdxl = full_size_unet("SDXL")
    weights = meta_weights(adapter_shapes("instantid", attention_layers(sdxl)))
    assert detect(weights) == "instantid"
    adapter = read_adapter("instantid", "test", weights, sdxl)
    assert (len(adapter.layers), adapter.scale) == (70, 0.8)


def test_the_drawing_is_the_one_that_opencv_makes() -> None:
    cv2 = pytest.importorskip("cv2")
    found = draw_face(LANDMARKS, 180, 160)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    expected = np.zeros((160, 180, 3), np.uint8)
    for start in (0, 1, 3, 4):
        ends = np.array([LANDMARKS[start], LANDMARKS[2]])
        dx, dy = ends[0] - ends[1]
        middle = tuple(int(value) for value in ends.mean(0))
        polygon = cv2.ellipse2Poly(
            middle, (int(np.hypot(dx, dy) / 2), 4), int(np.degrees(np.arctan2(dy, dx))), 0, 360, 1
        )
        cv2.fillConvexPoly(expected, polygon, [int(0.6 * value) for value in colours[start]])
    for point, colour in zip(LANDMARKS, colours, strict=True):
        cv2.circle(expected, (int(point[0]), int(point[1])), 10, colour, -1)
    drawn = expected.any(-1)
    assert (found == expected).all(-1)[drawn].mean() > 0.95
    assert (found[~drawn].any(-1)).mean() < 0.005


def test_the_drawing_may_reach_over_the_edge() -> None:
    picture = draw_face([(-5, -5), (40, 4), (20, 20), (20, 20), (300, 50)], 64, 48)
    assert picture.shape == (48, 64, 3)
    assert tuple(picture[0, 0]) == (255, 0, 0)
    assert tuple(picture[20, 20]) == (255, 255, 0)
