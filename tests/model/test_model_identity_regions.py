"""Regions: each position is shared among the characters that are in the row, whatever the maps say."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storyloom_model.identity.regions import shares, stream_regions


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


casts = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4)
seeds = st.integers(0, 10_000)


@given(cast=casts, seed=seeds, size=st.sampled_from([0.0, 1e-42, 1e-30, 1e-6, 1.0]), spread=st.integers(0, 12))
def test_those_present_share_everything_and_others_nothing(
    cast: list[list[bool]], seed: int, size: float, spread: int
) -> None:
    present = torch.tensor(cast)
    maps = size * draw(seed, *present.shape, 7).pow(spread)
    found = shares(maps, present)
    assert float(found.min()) >= 0
    assert not found[~present].any()
    expected = present.any(1)[:, None].float().expand(-1, 7)
    torch.testing.assert_close(found.sum(1), expected, atol=1e-6, rtol=0)


@given(seed=seeds, size=st.sampled_from([1e-30, 1e-3, 1.0]))
def test_one_character_alone_has_the_whole_picture(seed: int, size: float) -> None:
    maps = size * draw(seed, 1, 2, 5)
    assert torch.equal(shares(maps, torch.tensor([[False, True]]))[0], torch.tensor([[0.0] * 5, [1.0] * 5]))


@given(seed=seeds, factor=st.sampled_from([1e-20, 0.3, 100.0]))
def test_shares_go_by_the_squares_of_the_maps_at_any_scale(seed: int, factor: float) -> None:
    maps = 0.01 + draw(seed, 2, 3, 5)
    everybody = torch.ones(2, 3, dtype=torch.bool)
    found = shares(maps, everybody)
    torch.testing.assert_close(found, maps**2 / (maps**2).sum(1, keepdim=True))
    torch.testing.assert_close(shares(factor * maps, everybody), found)


def test_where_no_map_says_anything_they_share_alike() -> None:
    maps = torch.zeros(1, 3, 2)
    maps[0, 1, 1] = 0.2
    found = shares(maps, torch.tensor([[True, True, False]]))
    assert torch.equal(found[0], torch.tensor([[0.5, 0.0], [0.5, 1.0], [0.0, 0.0]]))


def test_without_characters_there_are_no_shares() -> None:
    assert shares(torch.zeros(2, 0, 5), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0, 5)


def test_streams_act_where_their_owners_are_and_others_everywhere() -> None:
    of_characters = draw(0, 2, 2, 5)
    found = stream_regions(of_characters, torch.tensor([[1, -1, 1], [0, 1, -1]]))
    assert torch.equal(found[0], torch.stack([of_characters[0, 1], torch.ones(5), of_characters[0, 1]]))
    assert torch.equal(found[1], torch.stack([of_characters[1, 0], of_characters[1, 1], torch.ones(5)]))
    nobody = stream_regions(torch.zeros(2, 0, 5), torch.full((2, 1), -1))
    assert torch.equal(nobody, torch.ones(2, 1, 5))
