"""K1: every implementation against the definition, on ragged groups; gradients; what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from storyloom_kernels import GroupLayout, cross_frame_attention, reference
from storyloom_kernels.bank import compact
from storyloom_kernels.implementations import triton_obstacle
from tests.kernels.launchers import DEVICE
from tests.kernels.poison import poisoned_memory

pytest.importorskip("triton")

from storyloom_kernels.fused import cross_frame
from storyloom_kernels.ops import cross_frame_attention as op
from storyloom_kernels.tuning import Tiles

pytestmark = pytest.mark.skipif(
    triton_obstacle(torch.zeros(1, device=DEVICE)) is not None, reason="neither a GPU nor Triton's interpreter"
)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}
layouts = st.sampled_from([(1,), (2,), (3,), (1, 2), (2, 1), (1, 1, 2)]).map(GroupLayout)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """[R, H, N, d] as a view of [R, N, H, d], as a layer's projections give it."""
    rows, heads, positions, width = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, positions, heads, width, generator=generator).to(DEVICE, dtype).transpose(1, 2)


def case(seed: int, layout: GroupLayout, positions: int, width: int, share: float, dtype: torch.dtype) -> list[Tensor]:
    shape = (layout.rows, 2, positions, width)
    mask = torch.rand(layout.rows, positions, generator=torch.Generator().manual_seed(seed + 3)) < share
    return [*(draw(seed + i, shape, dtype) for i in range(3)), mask.to(DEVICE)]


@settings(max_examples=8, deadline=None)
@given(
    seeds, layouts, st.sampled_from([17, 32, 40]), st.sampled_from([16, 40, 64, 80]), st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([torch.float32, torch.float16]), st.sampled_from([(16, 32), (32, 16)]),
)  # fmt: skip
@example(0, GroupLayout((3,)), 32, 160, 0.3, torch.float32, (32, 16))
def test_triton_is_the_definition(
    seed: int, layout: GroupLayout, positions: int, width: int, share: float, dtype: torch.dtype, sizes: tuple[int, int]
) -> None:
    q, k, v, mask = case(seed, layout, positions, width, share, dtype)
    expected = reference.cross_frame_attention(q.float(), k.float(), v.float(), mask, layout)
    index, offsets = compact(mask)
    index[int(offsets[-1]) :] = 2**30  # slots beyond the bank must not be followed
    with poisoned_memory():
        out, lse = cross_frame.forward(q, k, v, index, offsets, layout.bounds(DEVICE), Tiles(*sizes, warps=4, stages=2))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert lse.isfinite().all()


@settings(max_examples=3, deadline=None)
@given(seeds, layouts, st.sampled_from([17, 32]), st.sampled_from([40, 64]), st.sampled_from([0.0, 0.4]))
@example(1, GroupLayout((3,)), 33, 80, 0.4)
@example(2, GroupLayout((1, 2)), 16, 16, 1.0)
def test_gradients_are_those_of_the_definition(
    seed: int, layout: GroupLayout, positions: int, width: int, share: float
) -> None:
    q, k, v, mask = case(seed, layout, positions, width, share, torch.float32)
    d_out = draw(seed + 9, tuple(q.shape), torch.float32)
    gradients = {}
    for name in ("reference", "triton"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = cross_frame_attention(*leaves, mask, layout, implementation=name)  # type: ignore[arg-type]
        gradients[name] = torch.autograd.grad(out, leaves, d_out)
    for made, true in zip(gradients["triton"], gradients["reference"], strict=True):
        torch.testing.assert_close(made, true, atol=5e-5, rtol=5e-5)


def test_a_group_is_the_same_bits_in_any_company() -> None:
    layout = GroupLayout((2, 1, 2))
    q, k, v, mask = case(5, layout, 32, 40, 0.3, torch.float32)
    together = cross_frame_attention(q, k, v, mask, layout, implementation="triton")
    for rows in layout.slices():
        alone = cross_frame_attention(
            q[rows], k[rows], v[rows], mask[rows], GroupLayout((rows.stop - rows.start,)), implementation="triton"
        )
        assert torch.equal(together[rows], alone)


@pytest.mark.parametrize(
    "implementation",
    [
        "sdpa",
        "flex",
        pytest.param(
            "xformers",
            marks=pytest.mark.skipif(
                DEVICE.type == "cpu" or find_spec("xformers") is None, reason="needs xformers and a GPU"
            ),
        ),
    ],
)
@pytest.mark.parametrize(("frames", "share"), [((3, 1, 2), 0.3), ((2,), 0.0), ((2, 2), 1.0), ((1,), 0.5)])
def test_other_libraries_agree(implementation: str, frames: tuple[int, ...], share: float) -> None:
    layout = GroupLayout(frames)
    q, k, v, mask = case(7, layout, 32, 16, share, torch.float32)
    made = cross_frame_attention(q, k, v, mask, layout, implementation=implementation)  # type: ignore[arg-type]
    expected = reference.cross_frame_attention(q, k, v, mask, layout)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_the_op_fulfils_the_contracts_of_torch_library() -> None:
    q, k, v, mask = case(3, GroupLayout((2,)), 16, 16, 0.3, torch.float32)
    bounds = GroupLayout((2,)).bounds(DEVICE)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(op, (*leaves, mask, bounds))


def test_it_compiles_without_a_graph_break() -> None:
    layout = GroupLayout((2, 1))
    q, k, v, mask = case(4, layout, 16, 16, 0.3, torch.float32)
    bounds = layout.bounds(DEVICE)

    def layer(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return 2 * cross_frame_attention(q, k, v, mask, bounds, implementation="triton")

    compiled: Callable[..., Tensor] = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, mask), layer(q, k, v, mask))


def test_layouts_survive_their_tensor() -> None:
    for frames in ((1,), (3, 1, 2), (2, 2)):
        layout = GroupLayout(frames)
        assert GroupLayout.from_bounds(layout.bounds(torch.device("cpu"))) == layout
        starts = [[piece.start, piece.stop] for piece in layout.slices()]
        assert sorted({tuple(row) for row in layout.bounds(DEVICE).tolist()}) == [tuple(row) for row in starts]


@pytest.mark.parametrize(
    ("implementation", "width", "dtype", "says"),
    [
        ("triton", 20, torch.float32, "head dimensions of 16 to 256 in steps of 8; got 20"),
        ("triton", 16, torch.float64, "float32, float16 and bfloat16; got torch.float64"),
        ("flash", 16, torch.float32, "no implementation 'flash'"),
    ],
)
def test_what_cannot_run_says_why(implementation: str, width: int, dtype: torch.dtype, says: str) -> None:
    layout = GroupLayout((1,))
    q, k, v, mask = case(0, layout, 16, width, 0.3, torch.float32)
    with pytest.raises(ValueError, match=says):
        cross_frame_attention(q.to(dtype), k.to(dtype), v.to(dtype), mask, layout, implementation=implementation)  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("xformers") is not None, reason="xformers is installed")
def test_a_library_that_is_not_there_is_named() -> None:
    q, k, v, mask = case(0, GroupLayout((1,)), 16, 16, 0.3, torch.float32)
    with pytest.raises(ValueError, match="xformers cannot run: the package is not installed"):
        cross_frame_attention(q, k, v, mask, GroupLayout((1,)), implementation="xformers")


def test_automatic_choice_takes_what_triton_cannot() -> None:
    layout = GroupLayout((2,))
    q, k, v, mask = case(0, layout, 16, 20, 0.3, torch.float32)
    made = cross_frame_attention(q, k, v, mask, layout)
    torch.testing.assert_close(made, reference.cross_frame_attention(q, k, v, mask, layout))


def test_gradients_flow_after_inference_with_the_same_layout() -> None:
    """What is kept of a layout must not remember the mode in which it was first asked for."""
    layout = GroupLayout((2, 5))
    q, k, v, mask = case(0, layout, 16, 16, 0.5, torch.float32)
    with torch.inference_mode():
        cross_frame_attention(q, k, v, mask, layout, implementation="triton")
    cross_frame_attention(q.requires_grad_(), k, v, mask, layout, implementation="triton").sum().backward()
    assert q.grad is not None
