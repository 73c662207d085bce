"""Thresholds against a plain search, and the cases that have no foreground."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storyloom_kernels import foreground, normalise_maps, union

values = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=40)


def naive_otsu(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tries every threshold between the 256 bins and computes the variance between classes from the bins' members."""
    bins = np.minimum((levels * 256).astype(int), 255)
    best, mask = 0.0, np.zeros(len(levels), dtype=bool)
    for threshold in range(256):
        upper = bins > threshold
        if upper.all() or not upper.any():
            continue
        share = upper.mean()
        variance = share * (1 - share) * (bins[upper].mean() - bins[~upper].mean()) ** 2
        if variance > best * (1 + 1e-12):
            best, mask = variance, upper
    return mask


def spread(mask: NDArray[np.bool_], bins: NDArray[np.float64]) -> float:
    share = mask.mean()
    return float(share * (1 - share) * (bins[mask].mean() - bins[~mask].mean()) ** 2) if 0 < share < 1 else 0.0


@settings(max_examples=100, deadline=None)
@given(values)
def test_otsu_separates_as_well_as_a_plain_search(numbers: list[float]) -> None:
    maps = torch.tensor(numbers).reshape(1, 1, -1)
    levels = normalise_maps(maps)[0, 0].double().numpy()
    bins = np.minimum((levels * 256).astype(int), 255).astype(np.float64)
    found, expected = foreground(maps)[0, 0].numpy(), naive_otsu(levels)
    # Two thresholds may be equally good up to rounding; then either will do.
    assert np.array_equal(found, expected) or spread(found, bins) == pytest.approx(spread(expected, bins), rel=1e-9)


def test_otsu_finds_a_bright_square() -> None:
    picture = 0.2 + 0.05 * torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    picture[4:9, 5:12] += 0.5
    mask = foreground(picture.reshape(1, 1, -1)).reshape(16, 16)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:9, 5:12] = True
    assert torch.equal(mask, expected)


@settings(max_examples=30, deadline=None)
@given(values, st.sampled_from([0.25, 4.0, 1024.0]))
def test_the_scale_of_a_map_does_not_matter(numbers: list[float], scale: float) -> None:
    maps = torch.tensor(numbers).reshape(1, 1, -1)
    assert torch.equal(foreground(maps), foreground(maps * scale))


def test_maps_are_thresholded_one_by_one() -> None:
    maps = torch.rand(3, 2, 30, generator=torch.Generator().manual_seed(1))
    together = foreground(maps)
    for row in range(3):
        for character in range(2):
            assert torch.equal(
                together[row, character], foreground(maps[row : row + 1, character : character + 1])[0, 0]
            )


@pytest.mark.parametrize(("method", "value"), [("otsu", None), ("quantile", 0.5), ("fixed", 0.0)])
@pytest.mark.parametrize("level", [0.0, 0.3, float("nan")])
def test_a_constant_map_has_no_foreground(method: str, value: float | None, level: float) -> None:
    assert not foreground(torch.full((1, 2, 9), level), method, value).any()  # type: ignore[arg-type]


def test_quantile_and_fixed_keep_what_lies_above() -> None:
    maps = torch.arange(8.0).reshape(1, 1, 8)
    assert foreground(maps, "quantile", 0.75)[0, 0].tolist() == [False] * 6 + [True] * 2
    assert foreground(maps, "fixed", 3 / 7)[0, 0].tolist() == [False] * 4 + [True] * 4


def test_no_characters_have_no_foreground() -> None:
    mask = foreground(torch.zeros(3, 0, 5))
    assert mask.shape == (3, 0, 5)
    assert not union(mask).any()


def test_union_takes_every_character() -> None:
    masks = torch.tensor([[[True, False, False], [False, True, False]]])
    assert union(masks).tolist() == [[True, True, False]]


def test_normalised_maps_span_zero_to_one() -> None:
    levels = normalise_maps(torch.tensor([[2.0, 4.0, 3.0], [5.0, 5.0, 5.0], [0.0, float("nan"), 2.0]]))
    assert levels.tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(("method", "value"), [("otsu", 0.5), ("quantile", None), ("fixed", 1.5), ("median", None)])
def test_a_rule_that_makes_no_sense_is_refused(method: str, value: float | None) -> None:
    with pytest.raises(ValueError, match="otsu"):
        foreground(torch.zeros(1, 1, 4), method, value)  # type: ignore[arg-type]
