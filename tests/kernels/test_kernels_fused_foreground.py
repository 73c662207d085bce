"""K3: Triton's masks and banks equal those of the definition in every position."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from storyloom_kernels.bank import compact
from storyloom_kernels.foreground import ForegroundMethod
from storyloom_kernels.foreground import foreground as reference
from tests.kernels.launchers import DEVICE, launchers
from tests.kernels.poison import poisoned_memory

seeds = st.integers(0, 2**32 - 1)
rules = st.sampled_from(
    [("otsu", None), ("quantile", 0.7), ("quantile", 0.5), ("quantile", 1.0), ("fixed", 0.3), ("fixed", 0.0)]
)
masks = st.builds(
    lambda seed, rows, positions, share: draw(seed, rows, positions) < share,
    seeds, st.integers(1, 4), st.sampled_from([1, 16, 33, 70]), st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    return launchers("foreground")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def foreground(fused: ModuleType, maps: Tensor, method: ForegroundMethod, value: float | None) -> Tensor:
    with poisoned_memory():
        mask: Tensor = fused.foreground(maps.to(DEVICE), method, value)
    assert mask.dtype == torch.bool
    return mask.cpu()


@settings(max_examples=12, deadline=None)
@given(
    seeds, st.sampled_from([2, 100, 300]), rules, st.sampled_from([0, 3, 40]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip
@example(0, 1, ("otsu", None), 0, torch.float32)
@example(0, 1, ("quantile", 0.5), 0, torch.float32)
@example(1, 16384, ("otsu", None), 0, torch.float32)
@example(2, 9216, ("quantile", 0.9), 0, torch.float16)
def test_masks_are_those_of_the_definition(
    fused: ModuleType,
    seed: int,
    positions: int,
    rule: tuple[ForegroundMethod, float | None],
    levels: int,
    dtype: torch.dtype,
) -> None:
    maps = draw(seed, 2, 3, positions)
    if levels:  # many positions at one level, and levels on the edge between two bins
        maps = (maps * levels).round() / levels
    maps[0, 1] = 0.25
    maps[0, 2, 0], maps[1, 0, -1], maps[1, 1, positions // 2] = float("nan"), float("inf"), float("-inf")
    maps = maps.to(dtype)
    assert torch.equal(foreground(fused, maps, *rule), reference(maps, *rule))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30), st.floats(0, 1))
@example([0.0, 1.0], 0.49999997)
@example([0.0, 1e-45, 1.0], 0.5)
def test_quantiles_are_those_of_torch(fused: ModuleType, numbers: list[float], value: float) -> None:
    maps = torch.tensor(numbers).reshape(1, 1, -1)
    assert torch.equal(foreground(fused, maps, "quantile", value), reference(maps, "quantile", value))


def test_maps_may_be_a_view(fused: ModuleType) -> None:
    maps = draw(3, 2, 50, 3).transpose(1, 2)[:, 1:]
    assert torch.equal(foreground(fused, maps, "otsu", None), reference(maps))


@pytest.mark.parametrize("shape", [(3, 0, 5), (0, 2, 5), (2, 2, 0)])
def test_nothing_has_no_foreground(fused: ModuleType, shape: tuple[int, int, int]) -> None:
    assert foreground(fused, torch.zeros(shape), "otsu", None).shape == shape


def test_a_map_too_large_for_a_program_is_refused(fused: ModuleType) -> None:
    with pytest.raises(ValueError, match="16384"):
        fused.foreground(torch.zeros(1, 1, 16385, device=DEVICE), "otsu", None)


@settings(max_examples=30, deadline=None)
@given(masks)
def test_compact_lists_the_foreground_in_order(mask: Tensor) -> None:
    index, offsets = compact(mask)
    assert index.dtype == offsets.dtype == torch.int32
    assert index.shape == (mask.numel(),)
    assert offsets.tolist() == [int(mask[:row].sum()) for row in range(mask.shape[0] + 1)]
    assert index[: offsets[-1]].tolist() == mask.flatten().nonzero().flatten().tolist()


@settings(max_examples=10, deadline=None)
@given(masks, st.sampled_from([(16, 16), (64, 32), None]))
@example(torch.ones(3, 70, dtype=torch.bool), (32, 16))
@example(torch.zeros(2, 0, dtype=torch.bool), None)
@example(torch.zeros(0, 4, dtype=torch.bool), None)
def test_banks_are_those_of_the_definition(fused: ModuleType, mask: Tensor, blocks: tuple[int, int] | None) -> None:
    with pytest.MonkeyPatch.context() as patch, poisoned_memory():
        if blocks:
            patch.setattr(fused, "COUNT_BLOCK", blocks[0])
            patch.setattr(fused, "SCAN_BLOCK", blocks[1])
        index, offsets = (tensor.cpu() for tensor in fused.union_bank(mask.to(DEVICE)))
    expected_index, expected_offsets = compact(mask)
    assert torch.equal(offsets, expected_offsets)
    assert torch.equal(index, expected_index)


@pytest.mark.parametrize("mask", [torch.zeros(2, 3), torch.zeros(2, 3, 4, dtype=torch.bool)], ids=["float", "3-D"])
def test_what_is_no_mask_is_refused(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="bool mask"):
        compact(mask)
