"""The definitions against loops that say the same in the plainest way, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels import GroupLayout, attention_maps, cross_attention_with_maps, cross_frame_attention

layouts = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(lambda frames: GroupLayout(tuple(frames)))
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_mask(seed: int, share: float, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def loop_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, layout: GroupLayout) -> Tensor:
    """One query at a time: its own keys, then the visible keys of each other frame."""
    out = torch.zeros_like(q)
    for rows in layout.slices():
        group = range(rows.start, rows.stop)
        for row in group:
            for head in range(q.shape[1]):
                for position in range(q.shape[2]):
                    keys = [k[row, head]] + [k[other, head][mask[other]] for other in group if other != row]
                    values = [v[row, head]] + [v[other, head][mask[other]] for other in group if other != row]
                    scores = torch.cat(keys) @ q[row, head, position] / math.sqrt(q.shape[3])
                    weights = scores.exp() / scores.exp().sum()
                    out[row, head, position] = weights @ torch.cat(values)
    return out


@settings(max_examples=30, deadline=None)
@given(layout=layouts, seed=seeds, share=st.sampled_from([0.0, 0.2, 0.7, 1.0]), positions=st.integers(1, 6))
def test_cross_frame_attention_is_what_the_loop_says(
    layout: GroupLayout, seed: int, share: float, positions: int
) -> None:
    shape = (layout.rows, 2, positions, 4)
    q, k, v = (draw(seed + offset, *shape) for offset in range(3))
    mask = draw_mask(seed, share, layout.rows, positions)

    expected = loop_attention(q, k, v, mask, layout)
    torch.testing.assert_close(cross_frame_attention(q, k, v, mask, layout), expected, atol=1e-12, rtol=1e-10)
    single = cross_frame_attention(q.float(), k.float(), v.float(), mask, layout)
    torch.testing.assert_close(single.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, torch.zeros(5, 6, dtype=torch.bool)], ids=["none", "empty bank"])
def test_without_a_foreground_it_is_plain_self_attention(mask: Tensor | None) -> None:
    q, k, v = (draw(seed, 5, 2, 6, 4) for seed in range(3))
    out = cross_frame_attention(q, k, v, mask, GroupLayout((2, 3)))
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))


def test_a_full_bank_is_attention_over_the_whole_group() -> None:
    q, k, v = (draw(seed, 3, 2, 6, 4) for seed in range(3))
    out = cross_frame_attention(q, k, v, torch.ones(3, 6, dtype=torch.bool), GroupLayout((3,)))

    def as_one_sequence(values: Tensor) -> Tensor:
        return values.transpose(0, 1).reshape(1, 2, 18, 4)

    whole = F.scaled_dot_product_attention(as_one_sequence(q), as_one_sequence(k), as_one_sequence(v))
    torch.testing.assert_close(as_one_sequence(out), whole)


def test_a_group_of_one_frame_sees_only_itself() -> None:
    q, k, v = (draw(seed, 2, 2, 6, 4) for seed in range(3))
    out = cross_frame_attention(q, k, v, torch.ones(2, 6, dtype=torch.bool), GroupLayout((1, 1)))
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))


@settings(max_examples=20, deadline=None)
@given(layout=layouts, seed=seeds)
def test_a_group_does_not_depend_on_its_neighbours(layout: GroupLayout, seed: int) -> None:
    q, k, v = (draw(seed + offset, layout.rows, 2, 6, 4, dtype=torch.float32) for offset in range(3))
    mask = draw_mask(seed, 0.4, layout.rows, 6)
    together = cross_frame_attention(q, k, v, mask, layout)
    for rows, frames in zip(layout.slices(), layout.frames, strict=True):
        alone = cross_frame_attention(q[rows], k[rows], v[rows], mask[rows], GroupLayout((frames,)))
        assert torch.equal(together[rows], alone)


def test_cross_frame_attention_has_right_gradients() -> None:
    q, k, v = (draw(seed, 3, 1, 4, 2).requires_grad_() for seed in range(3))
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cross_frame_attention(q, k, v, mask, GroupLayout((2, 1)))

    assert torch.autograd.gradcheck(attend, (q, k, v))


def test_wrong_shapes_are_refused() -> None:
    q = draw(0, 3, 2, 6, 4)
    with pytest.raises(ValueError, match=r"must be \[2, H, N, d\]"):
        cross_frame_attention(q, q, q, None, GroupLayout((2,)))
    with pytest.raises(ValueError, match="mask must be bool"):
        cross_frame_attention(q, q, q, torch.ones(3, 6), GroupLayout((3,)))
    with pytest.raises(ValueError, match="token_mask must be"):
        attention_maps(q, q, torch.ones(3, 1, 5))
    with pytest.raises(ValueError, match="at least one row"):
        GroupLayout((2, 0))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, rows=st.integers(1, 3), cast=st.integers(0, 3), tokens=st.integers(1, 7))
def test_maps_are_what_the_loop_says(seed: int, rows: int, cast: int, tokens: int) -> None:
    q, k = draw(seed, rows, 2, 5, 4), draw(seed + 1, rows, 2, tokens, 4)
    token_mask = draw_mask(seed, 0.4, rows, cast, tokens)
    maps = attention_maps(q, k, token_mask)

    assert maps.shape == (rows, cast, 5)
    for row in range(rows):
        for character in range(cast):
            chosen = token_mask[row, character].nonzero().flatten().tolist()
            expected = torch.zeros(5, dtype=torch.float64)
            for head in range(2):
                scores = (q[row, head] @ k[row, head].T / 2).exp()
                probability = scores / scores.sum(1, keepdim=True)
                expected += sum((probability[:, token] for token in chosen), expected * 0) / (2 * max(1, len(chosen)))
            torch.testing.assert_close(maps[row, character], expected)


def test_maps_do_not_change_the_attention() -> None:
    q, k, v = draw(0, 2, 3, 5, 4), draw(1, 2, 3, 7, 4), draw(2, 2, 3, 7, 4)
    token_mask = draw_mask(0, 0.5, 2, 2, 7)
    out, maps = cross_attention_with_maps(q, k, v, token_mask)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(maps, attention_maps(q, k, token_mask.to(torch.int64)))


def test_half_precision_keeps_its_type_and_has_exact_enough_maps() -> None:
    q, k, v = (draw(seed, 2, 2, 5, 8).to(torch.bfloat16) for seed in range(3))
    token_mask = torch.ones(2, 1, 5, dtype=torch.bool)
    out, maps = cross_attention_with_maps(q, k, v, token_mask)
    assert out.dtype == torch.bfloat16
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, torch.full_like(maps, 1 / 5), atol=1e-6, rtol=0)


def test_maps_have_right_gradients() -> None:
    q, k = draw(0, 2, 2, 3, 2).requires_grad_(), draw(1, 2, 2, 4, 2).requires_grad_()
    token_mask = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 1]]])

    def maps(q: Tensor, k: Tensor) -> Tensor:
        return attention_maps(q, k, token_mask)

    assert torch.autograd.gradcheck(maps, (q, k))
