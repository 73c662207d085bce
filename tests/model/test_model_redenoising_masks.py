"""The masks of a second pass: whole, apart, growing; and what is mixed by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from storyloom_model.redenoising.masks import GrowingMasks, arrange, distances, largest_part, masks_of_picture
from storyloom_model.redenoising.mixing import mix
from storyloom_model.redenoising.plan import radius

FACTOR = 8


@st.composite
def blobs(draw: st.DrawFn) -> Tensor:
    """Masks of one to three frames and characters, from nothing to everything, in pieces or whole."""
    shape = [draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 9)), draw(st.integers(2, 9))]
    share = draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 10_000))))
    return noise < share


def size_of_largest(mask: Tensor) -> int:
    labels, count = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
    return max((int((labels == label).sum()) for label in range(1, count + 1)), default=0)


@settings(max_examples=40, deadline=None)
@given(masks=blobs())
def test_the_largest_part_is_in_one_piece(masks: Tensor) -> None:
    for mask in masks.flatten(0, 1):
        part = largest_part(mask)
        assert not (part & ~mask).any()
        assert int(part.sum()) == size_of_largest(mask) == size_of_largest(part)


@settings(max_examples=40, deadline=None)
@given(masks=blobs())
def test_distances_are_those_between_positions(masks: Tensor) -> None:
    for mask in masks.flatten(0, 1):
        found = distances(mask, FACTOR)
        if mask.any():
            expected = ndimage.distance_transform_edt(~mask.numpy()) * FACTOR
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
        else:
            assert torch.isinf(found).all()


@settings(max_examples=60, deadline=None)
@given(masks=blobs(), margin=st.integers(0, 20), radii=st.lists(st.integers(0, 80), min_size=2, max_size=2))
def test_masks_are_apart_and_only_grow(masks: Tensor, margin: int, radii: list[int]) -> None:
    """Each holds the largest part of what nobody smaller has; no two meet; nothing is given up but to a smaller one."""
    growing = arrange(masks, margin, FACTOR)
    own, less, more = (growing.grown(size) for size in (0, *sorted(radii)))
    for grown in (own, less, more):
        assert int(grown.sum(dim=1).max()) <= 1
    assert not (own & ~less).any()
    lost = less & ~more
    assert not (lost.any(dim=1) & ~more.any(dim=1)).any()
    assert not lost.gather(1, growing.order[:, :1, None, None].expand(-1, 1, *masks.shape[2:])).any()
    for frame in range(len(masks)):
        found = [place for place in range(masks.shape[1]) if masks[frame, place].any()]
        smallest = min(found, key=lambda place: int(masks[frame, place].sum()), default=None)
        if smallest is not None:
            assert not (largest_part(masks[frame, smallest]) & ~own[frame, smallest]).any()
        for place in set(range(masks.shape[1])) - set(found):
            assert not more[frame, place].any()


def test_a_mask_alone_grows_as_far_as_it_is_told() -> None:
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[0, 0, 4, 4] = True
    growing = arrange(mask, 8, FACTOR)
    assert int(growing.grown(0).sum()) == 5  # The position and those beside it, centre to centre.
    reach = distances(mask[0, 0], FACTOR)
    for size in (7, 8, 16, 24):
        expected = distances(reach <= 8, FACTOR) <= size
        assert torch.equal(growing.grown(size)[0, 0], expected)


def test_the_smaller_takes_what_is_free_and_nobody_takes_what_is_another_s() -> None:
    """One row: a large one at the left, a small one at the right, and room between them that both reach."""
    masks = torch.zeros(1, 2, 1, 9, dtype=torch.bool)
    masks[0, 0, 0, :4] = True
    masks[0, 1, 0, 8] = True
    grown = arrange(masks, 0, FACTOR).grown(10 * FACTOR)[0, :, 0].tolist()
    assert grown == [[True] * 4 + [False] * 5, [False] * 4 + [True] * 5]


def test_what_two_claim_is_the_smaller_one_s() -> None:
    masks = torch.zeros(1, 2, 6, 6, dtype=torch.bool)
    masks[0, 0] = True
    masks[0, 1, 2:4, 2:4] = True
    own = arrange(masks, 0, FACTOR).grown(0)[0]
    assert torch.equal(own[1], masks[0, 1])
    assert torch.equal(own[0], ~masks[0, 1])


def test_masks_of_a_picture_are_brought_to_the_latents() -> None:
    picture = np.zeros((1, 32, 48), np.bool_)
    picture[0, 4:20, 8:30] = True
    expected = torch.zeros(1, 4, 6, dtype=torch.bool)
    expected[0, 1:2, 1:4] = True  # Rows that are half covered do not count.
    assert torch.equal(masks_of_picture(picture, (4, 6)), expected)


@settings(max_examples=30, deadline=None)
@given(masks=blobs(), seed=st.integers(0, 1000), scale=st.floats(1, 10))
def test_mixing_before_guidance_or_after_it_is_the_same(masks: Tensor, seed: int, scale: float) -> None:
    """The paper's order, in a plain formula: each branch is mixed by itself, then guided."""
    draw = np.random.default_rng(seed)
    apart = arrange(masks, 0, FACTOR).grown(0).numpy()
    frames, cast, height, width = apart.shape
    cached = draw.standard_normal((2, frames, 4, height, width))
    own = draw.standard_normal((cast, 2, frames, 4, height, width))
    branches = cached * ~apart.any(axis=1)[:, None]
    for place in range(cast):
        branches += own[place] * apart[:, place, None]
    expected = branches[0] + scale * (branches[1] - branches[0])

    def guided(of: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        return torch.from_numpy(of[0] + scale * (of[1] - of[0]))

    everywhere = torch.arange(frames)
    mixed = mix(guided(cached), [(everywhere, guided(one)) for one in own], torch.from_numpy(apart))
    np.testing.assert_allclose(mixed.numpy(), expected, atol=1e-9)


@given(growth=st.integers(0, 512), steps=st.integers(1, 100), start=st.integers(0, 99))
def test_growth_is_the_paper_s(growth: int, steps: int, start: int) -> None:
    start = start % steps
    radii = [radius(growth, step, start, steps) for step in range(start, steps)]
    assert radii == [math.floor(growth * (step - start) / (steps - start) + 1e-9) for step in range(start, steps)]
    assert radii[0] == 0


def test_a_frame_without_anybody_has_no_masks() -> None:
    growing = arrange(torch.zeros(2, 2, 4, 4, dtype=torch.bool), 10, FACTOR)
    assert not growing.grown(1000).any()
    assert isinstance(growing, GrowingMasks)
    assert growing.nbytes == 2 * 2 * 4 * 4 * 4 + 2 * 2 * 8


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 1)])
def test_latents_may_be_thin(height: int, width: int) -> None:
    mask = torch.ones(1, 1, height, width, dtype=torch.bool)
    assert arrange(mask, 0, FACTOR).grown(0).all()
