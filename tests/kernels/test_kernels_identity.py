"""Identity cross-attention: the definition against a loop, and the Triton kernels against the definition.

Outside a GPU the kernels run in Triton's interpreter, which is slow: shapes are small, and tiles smaller than in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storyloom_kernels.reference import cross_attention_with_maps, identity_cross_attention, identity_maps
from storyloom_kernels.tuning import Tiles
from tests.kernels.launchers import DEVICE, launchers
from tests.kernels.poison import poisoned_memory

HEADS = 2
TILES = Tiles(queries=16, keys=16, warps=4, stages=2)


@dataclass(frozen=True)
class Case:
    """Arguments of the op, and a gradient for each of its two results."""

    q: Tensor
    k: Tensor
    v: Tensor
    id_k: Tensor
    id_v: Tensor
    stream_ends: Tensor
    scale: Tensor
    region: Tensor | None
    token_mask: Tensor | None
    d_out: Tensor
    d_maps: Tensor

    @property
    def arguments(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())[:9]

    @property
    def differentiable(self) -> list[Tensor]:
        tensors = (self.q, self.k, self.v, self.id_k, self.id_v, self.scale, self.region)
        return [tensor for tensor in tensors if tensor is not None]

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        changed = {name: change(value) for name, value in vars(self).items() if value is not None}
        return replace(self, **changed)

    def precise(self) -> Case:
        return self.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def rows(self, rows: slice) -> Case:
        return self.map(lambda tensor: tensor[rows])


@dataclass(frozen=True)
class Sizes:
    """What makes a `Case`. Streams end anywhere on the packed axis: some are empty, some tokens belong to none."""

    seed: int
    rows: int
    positions: int
    tokens: int
    packed: int
    streams: int
    groups: int
    region: bool

    def case(self, width: int, dtype: torch.dtype = torch.float64) -> Case:
        generator = torch.Generator().manual_seed(self.seed)

        def heads(length: int) -> Tensor:
            # As the projections of a layer leave them: the heads of one position side by side.
            values = torch.randn(self.rows, length, HEADS, width, generator=generator, dtype=torch.float64)
            return values.to(dtype).transpose(1, 2)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(self.rows, *shape, generator=generator, dtype=torch.float64)

        single = torch.float64 if dtype == torch.float64 else torch.float32
        ends = (uniform(self.streams) * (self.packed + 1)).to(torch.int32).sort(dim=1).values
        return Case(
            q=heads(self.positions),
            k=heads(self.tokens),
            v=heads(self.tokens),
            id_k=heads(self.packed),
            id_v=heads(self.packed),
            stream_ends=ends,
            scale=uniform(self.streams).to(single) * 2,
            region=uniform(self.streams, self.positions).to(single) if self.region else None,
            token_mask=uniform(self.groups, self.tokens) < 0.3 if self.groups else None,
            d_out=heads(self.positions),
            d_maps=torch.randn(self.rows, self.groups, self.positions, generator=generator).to(single),
        ).map(lambda tensor: tensor.to(DEVICE))


def sizes(rows: int, positions: int, tokens: int, packed: int) -> st.SearchStrategy[Sizes]:
    return st.builds(
        Sizes,
        seed=st.integers(0, 2**32 - 1),
        rows=st.integers(1, rows),
        positions=st.integers(1, positions),
        tokens=st.integers(1, tokens),
        packed=st.integers(0, packed),
        streams=st.integers(0, 4),
        groups=st.integers(0, 4),
        region=st.booleans(),
    )


def gradients(case: Case) -> list[Tensor]:
    """Of the definition, by autograd; 0 where nothing is read."""
    for tensor in case.differentiable:
        tensor.requires_grad_()
    out, maps = identity_cross_attention(*case.arguments)
    wanted = case.differentiable
    found = torch.autograd.grad([out, maps], wanted, [case.d_out, case.d_maps], allow_unused=True)
    return [torch.zeros_like(tensor) if grad is None else grad for tensor, grad in zip(wanted, found, strict=True)]


def loop_softmax(q: Tensor, k: Tensor) -> Tensor:
    powers = (k @ q / math.sqrt(q.shape[0])).exp()
    return powers / powers.sum()


def loop_identity_attention(case: Case) -> tuple[Tensor, Tensor]:
    """One query at a time, one stream at a time, one token at a time in the maps."""
    out = torch.zeros_like(case.q)
    rows, heads, positions, _ = case.q.shape
    groups = 0 if case.token_mask is None else case.token_mask.shape[1]
    maps = case.q.new_zeros(rows, groups, positions)
    for row in range(rows):
        ends = [0, *case.stream_ends[row].tolist()]
        for head in range(heads):
            for n in range(positions):
                query = case.q[row, head, n]
                probability = loop_softmax(query, case.k[row, head])
                out[row, head, n] = probability @ case.v[row, head]
                for c, (begin, end) in enumerate(pairwise(ends)):
                    if begin == end:
                        continue
                    identity = loop_softmax(query, case.id_k[row, head, begin:end]) @ case.id_v[row, head, begin:end]
                    here = 1 if case.region is None else case.region[row, c, n]
                    out[row, head, n] += case.scale[row, c] * here * identity
                for group in range(groups):
                    assert case.token_mask is not None
                    chosen = case.token_mask[row, group].nonzero().flatten().tolist()
                    for token in chosen:
                        maps[row, group, n] += probability[token] / (heads * len(chosen))
    return out, maps


@settings(max_examples=20, deadline=None)
@given(size=sizes(rows=2, positions=3, tokens=5, packed=7))
def test_the_definition_is_what_the_loop_says(size: Sizes) -> None:
    case = size.case(width=4)
    expected_out, expected_maps = loop_identity_attention(case)
    out, maps = identity_cross_attention(*case.arguments)
    torch.testing.assert_close(out, expected_out, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(maps, expected_maps, atol=1e-12, rtol=1e-10)

    single = case.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
    out, maps = identity_cross_attention(*single.arguments)
    torch.testing.assert_close(out.double(), expected_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps.double(), expected_maps, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_streams_it_is_cross_attention_with_maps(dtype: torch.dtype) -> None:
    case = Sizes(seed=0, rows=2, positions=5, tokens=7, packed=0, streams=0, groups=2, region=False).case(8, dtype)
    assert case.token_mask is not None
    out, maps = identity_cross_attention(*case.arguments)
    expected_out, expected_maps = cross_attention_with_maps(case.q, case.k, case.v, case.token_mask)
    assert out.dtype == dtype
    assert maps.dtype == torch.float32
    assert torch.equal(out, expected_out)
    assert torch.equal(maps, expected_maps)


def test_empty_streams_add_nothing_and_have_gradients_of_zero() -> None:
    size = Sizes(seed=1, rows=2, positions=5, tokens=7, packed=6, streams=3, groups=0, region=True)
    case = replace(size.case(8), stream_ends=torch.zeros(2, 3, dtype=torch.int32, device=DEVICE))
    out, maps = identity_cross_attention(*case.arguments)
    assert maps.shape == (2, 0, 5)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(case.q, case.k, case.v))
    d_q, _, _, *others = gradients(case)
    assert d_q.isfinite().all()
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in others)


def test_the_definition_has_right_gradients() -> None:
    case = Sizes(seed=2, rows=2, positions=2, tokens=3, packed=5, streams=3, groups=2, region=True).case(2)
    # One stream in the middle is empty, and in the second row two tokens belong to none.
    ends = torch.tensor([[2, 2, 5], [1, 3, 3]], dtype=torch.int32, device=DEVICE)

    def attend(
        q: Tensor, k: Tensor, v: Tensor, id_k: Tensor, id_v: Tensor, scale: Tensor, region: Tensor
    ) -> tuple[Tensor, Tensor]:
        return identity_cross_attention(q, k, v, id_k, id_v, ends, scale, region, case.token_mask)

    assert torch.autograd.gradcheck(attend, [tensor.requires_grad_() for tensor in case.differentiable])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q", torch.zeros(2, 3, 4), r"q must be \[R, H, N, d\]; got \[2, 3, 4\]"),
        ("v", torch.zeros(2, 2, 6, 8), r"k and v must be \[2, 2, T, 8\]"),
        ("id_k", torch.zeros(2, 2, 6, 4), r"id_k and id_v must be \[2, 2, S, 8\]"),
        ("stream_ends", torch.zeros(2, 3), r"stream_ends must be int \[2, C\]; got torch.float32 \[2, 3\]"),
        ("scale", torch.zeros(2, 2), r"scale must be \[2, 3\] for stream_ends; got \[2, 2\]"),
        ("region", torch.zeros(2, 3, 4), r"region must be \[2, 3, 5\] or None; got \[2, 3, 4\]"),
        ("token_mask", torch.zeros(2, 1, 6), r"token_mask must be \[2, K, 7\]; got \[2, 1, 6\]"),
    ],
)
def test_wrong_shapes_are_refused(name: str, value: Tensor, message: str) -> None:
    case = Sizes(seed=3, rows=2, positions=5, tokens=7, packed=6, streams=3, groups=1, region=True).case(8)
    with pytest.raises(ValueError, match=message):
        identity_cross_attention(*replace(case, **{name: value}).arguments)


@pytest.fixture(scope="module")
def kernels() -> Any:
    """The launchers of both directions."""
    return SimpleNamespace(forward=launchers("identity").forward, backward=launchers("identity_backward").backward)


def check_kernels(kernels: Any, case: Case, atol: float, rtol: float) -> None:
    """Results and gradients against the definition in float64; gradients are sums of more terms, with larger errors."""
    with poisoned_memory():
        out, maps, lse, id_lse = kernels.forward(*case.arguments, TILES)
        found = kernels.backward(*case.arguments, lse, id_lse, case.d_out, case.d_maps, TILES, TILES)
    precise = case.precise()
    expected_out, expected_maps = identity_cross_attention(*precise.arguments)
    assert out.dtype == case.q.dtype
    assert maps.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected_out, atol=atol, rtol=rtol)
    torch.testing.assert_close(maps.double(), expected_maps, atol=atol, rtol=rtol)
    names = ("q", "k", "v", "id_k", "id_v", "scale", "region")
    if case.region is None:
        assert found[6] is None
    for name, argument, grad, expected in zip(names, case.differentiable, found, gradients(precise), strict=False):
        assert grad.dtype == argument.dtype, name
        torch.testing.assert_close(grad.double(), expected, atol=2 * atol, rtol=2 * rtol)


@pytest.mark.parametrize("width", [16, 40, 64, 80])
@settings(max_examples=3, deadline=None)
@given(size=sizes(rows=2, positions=40, tokens=40, packed=40))
def test_the_kernels_are_what_the_definition_says(kernels: Any, width: int, size: Sizes) -> None:
    check_kernels(kernels, size.case(width, torch.float32), atol=2e-5, rtol=2e-5)


@settings(max_examples=5, deadline=None)
@given(size=sizes(rows=3, positions=40, tokens=40, packed=40), width=st.sampled_from([16, 40, 64, 80]))
def test_the_kernels_in_half_precision(kernels: Any, width: int, size: Sizes) -> None:
    check_kernels(kernels, size.case(width, torch.float16), atol=5e-3, rtol=5e-3)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="Triton's interpreter does not multiply bfloat16")
@settings(max_examples=5, deadline=None)
@given(size=sizes(rows=3, positions=200, tokens=90, packed=90), width=st.sampled_from([40, 64, 80, 160]))
def test_the_kernels_in_bfloat16(kernels: Any, width: int, size: Sizes) -> None:
    check_kernels(kernels, size.case(width, torch.bfloat16), atol=4e-2, rtol=4e-2)


def test_a_row_does_not_depend_on_its_neighbours_nor_the_output_on_maps(kernels: Any) -> None:
    case = Sizes(seed=4, rows=3, positions=20, tokens=20, packed=20, streams=2, groups=2, region=True)
    together = case.case(40, torch.float32)
    out, maps, *_ = kernels.forward(*together.arguments, TILES)
    alone = together.rows(slice(1, 2))
    alone_out, alone_maps, *_ = kernels.forward(*alone.arguments, TILES)
    assert torch.equal(out[1:2], alone_out)
    assert torch.equal(maps[1:2], alone_maps)
    without, no_maps, *_ = kernels.forward(*replace(alone, token_mask=None).arguments, TILES)
    assert torch.equal(without, alone_out)
    assert no_maps.shape == (1, 0, 20)


def test_any_strides_and_scores_far_below_zero(kernels: Any) -> None:
    size = Sizes(seed=5, rows=2, positions=20, tokens=18, packed=9, streams=2, groups=2, region=True)
    case = size.case(16, torch.float32)
    # Without care, keys beyond the last would score 0, of which the power is infinite beside the true ones.
    case = replace(case, q=3 + 0.1 * case.q, k=case.k - 10)
    assert case.region is not None
    odd = replace(
        case,
        q=case.q[:1, :1].expand_as(case.q),
        k=torch.nn.functional.pad(case.k, (1, 2))[..., 1:-2],
        id_v=case.id_v.transpose(2, 3).contiguous().transpose(2, 3),
        region=case.region.transpose(1, 2).contiguous().transpose(1, 2),
        scale=case.scale[:1].expand_as(case.scale),
        d_out=case.d_out[..., :1].expand_as(case.d_out),
        d_maps=case.d_maps[..., :1].expand_as(case.d_maps),
    )
    check_kernels(kernels, odd, atol=1e-3, rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(size=sizes(rows=2, positions=3, tokens=5, packed=7))
def test_maps_of_identity_tokens_are_what_a_loop_finds(size: Sizes) -> None:
    case = size.case(width=8)
    blocks = torch.rand(case.q.shape[0], 2, case.id_k.shape[2], generator=torch.Generator().manual_seed(1)) > 0.5
    expected = torch.zeros(case.q.shape[0], 2, case.q.shape[2], dtype=torch.float64)
    for row, ends in enumerate(case.stream_ends.tolist()):
        for begin, end in pairwise([0, *ends]):
            for head in range(case.q.shape[1]):
                scores = case.q[row, head] @ case.id_k[row, head, begin:end].T / math.sqrt(case.q.shape[-1])
                found = scores.softmax(-1) @ blocks[row, :, begin:end].double().T
                expected[row] += found.T / case.q.shape[1]
    torch.testing.assert_close(identity_maps(case.q, case.id_k, case.stream_ends, blocks), expected)
