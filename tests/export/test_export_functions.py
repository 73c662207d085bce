"""Every op's body, run by plain ONNX Runtime, against the op's definition in PyTorch."""

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storyloom_export.functions import function_protos
from storyloom_kernels import (
    GroupLayout,
    compact,
    cross_attention_with_maps,
    cross_frame_attention,
    foreground,
    group_norm_silu,
)
from tests.export.running import identity_inputs, run_op

FEW = settings(max_examples=15, deadline=None)
LAYOUTS = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_body_is_valid_onnx() -> None:
    for proto in function_protos().values():
        onnx.checker.check_function(proto)


@FEW
@given(
    rows=st.integers(1, 5),
    positions=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_bank_gathers_what_compact_does(rows: int, positions: int, share: float, seed: int) -> None:
    mask = torch.rand(rows, positions, generator=draws(seed)) < share
    index, offsets = run_op("Bank", {"mask": mask}, {"index": (torch.int32, 1), "offsets": (torch.int32, 1)})
    expected_index, expected_offsets = compact(mask)
    assert torch.equal(offsets, expected_offsets)
    assert torch.equal(index, expected_index)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, layout: GroupLayout) -> Tensor:
    index, offsets = compact(mask)
    bounds = layout.bounds(torch.device("cpu"))
    tensors = {"q": q, "k": k, "v": v, "index": index, "offsets": offsets, "bounds": bounds}
    return run_op("CrossFrameAttention", tensors, {"out": (q.dtype, 4)})[0]


@FEW
@given(
    frames=LAYOUTS,
    positions=st.integers(1, 20),
    heads=st.integers(1, 3),
    width=st.sampled_from([8, 40]),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 99),
)
def test_cross_frame_attention_on_ragged_groups(
    frames: tuple[int, ...], positions: int, heads: int, width: int, share: float, seed: int
) -> None:
    layout, draw = GroupLayout(frames), draws(seed)
    q, k, v = (torch.randn(layout.rows, positions, heads, width, generator=draw) for _ in range(3))
    mask = torch.rand(layout.rows, positions, generator=draw) < share
    expected = cross_frame_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, layout)
    torch.testing.assert_close(attend(q, k, v, mask, layout), expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_a_row_has_the_same_bits_whatever_other_groups_there_are() -> None:
    draw = draws(3)
    q, k, v = (torch.randn(5, 24, 2, 16, generator=draw) for _ in range(3))
    mask = torch.rand(5, 24, generator=draw) < 0.5
    together = attend(q, k, v, mask, GroupLayout((2, 3)))
    alone = attend(q[2:], k[2:], v[2:], mask[2:], GroupLayout((3,)))
    assert torch.equal(together[2:], alone)


@FEW
@given(
    rows=st.integers(1, 4),
    positions=st.integers(1, 30),
    characters=st.integers(1, 3),
    tokens=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_cross_attention_and_its_maps(rows: int, positions: int, characters: int, tokens: int, seed: int) -> None:
    draw = draws(seed)
    q = torch.randn(rows, positions, 2, 16, generator=draw)
    k, v = (torch.randn(rows, tokens, 2, 16, generator=draw) for _ in range(2))
    token_mask = torch.rand(rows, characters, tokens, generator=draw) < 0.4
    tensors = {"q": q, "k": k, "v": v, "token_mask": token_mask}
    out, head_maps = run_op("CrossAttentionWithMaps", tensors, {"out": (torch.float32, 4), "maps": (torch.float32, 4)})
    expected, maps = cross_attention_with_maps(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), token_mask)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head_maps.mean(1), maps, atol=1e-6, rtol=1e-5)


@FEW
@given(
    rows=st.integers(1, 4),
    positions=st.integers(1, 20),
    lengths=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=4, max_size=4),
    characters=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_identity_attention_adds_what_the_definition_does(
    rows: int, positions: int, lengths: list[list[int]], characters: int, seed: int
) -> None:
    given, expected = identity_inputs(rows, positions, lengths, characters, seed)
    (found,) = run_op("IdentityAttention", given, {"out": (torch.float32, 4)})
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    if not given["ends"].any():
        assert torch.equal(found, given["attended"])


@FEW
@given(
    rows=st.integers(1, 3),
    positions=st.integers(1, 300),
    kind=st.sampled_from(["noise", "blob", "constant", "steps", "broken"]),
    rule=st.sampled_from([("otsu", None), ("quantile", 0.0), ("quantile", 0.7), ("quantile", 1.0), ("fixed", 0.4)]),
    seed=st.integers(0, 99),
)
def test_foreground_is_the_definitions_in_every_position(
    rows: int, positions: int, kind: str, rule: tuple[str, float | None], seed: int
) -> None:
    maps = torch.rand(rows, 2, positions, generator=draws(seed))
    match kind:
        case "blob":
            maps = torch.sigmoid(20 * (maps.cumsum(-1) / positions - 0.25))
        case "constant":
            maps = torch.full_like(maps, 0.3)
        case "steps":
            maps = (maps * 4).floor()
        case "broken":
            maps[:, 0, 0], maps[:, 1, -1] = float("nan"), float("inf")
    method, value = rule
    name = {"otsu": "ForegroundOtsu", "quantile": "ForegroundQuantile", "fixed": "ForegroundFixed"}[method]
    attributes = {} if value is None else {"value": value}
    found = run_op(name, {"maps": maps}, {"mask": (torch.bool, 3)}, **attributes)[0]
    expected = foreground(maps, method, value)  # type: ignore[arg-type]
    different = (found != expected).sum().item()
    # A quantile falls between two levels, where the last bit of the threshold may decide about one position of a map.
    assert different <= (2 * rows if method == "quantile" else 0)


@FEW
@given(rows=st.integers(1, 3), height=st.integers(1, 7), mean=st.sampled_from([0.0, 30.0]), seed=st.integers(0, 99))
def test_group_norm_silu(rows: int, height: int, mean: float, seed: int) -> None:
    draw = draws(seed)
    x = torch.randn(rows, 8, height, 5, generator=draw) + mean
    weight, bias = torch.randn(8, generator=draw), torch.randn(8, generator=draw)
    tensors = {"x": x, "weight": weight, "bias": bias}
    found = run_op("GroupNormSilu", tensors, {"out": (torch.float32, 4)}, groups=4, epsilon=1e-5)[0]
    torch.testing.assert_close(found, group_norm_silu(x, 4, weight, bias, 1e-5), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["CrossFrameAttention", "GroupNormSilu"])
def test_half_precision_runs_and_keeps_its_type(name: str) -> None:
    draw = draws(0)
    if name == "GroupNormSilu":
        x = torch.randn(2, 8, 4, 4, generator=draw)
        halves = {key: value.half() for key, value in {"x": x, "weight": torch.ones(8), "bias": torch.zeros(8)}.items()}
        found = run_op(name, halves, {"out": (torch.float16, 4)}, groups=4, epsilon=1e-5)[0]
        expected = group_norm_silu(x, 4, torch.ones(8), torch.zeros(8), 1e-5)
    else:
        q, k, v = (torch.randn(3, 10, 2, 16, generator=draw) for _ in range(3))
        mask, layout = torch.rand(3, 10, generator=draw) < 0.5, GroupLayout((3,))
        found = attend(q.half(), k.half(), v.half(), mask, layout)
        expected = cross_frame_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, layout)
        expected = expected.transpose(1, 2)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, atol=5e-3, rtol=5e-3)
