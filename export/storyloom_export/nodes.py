"""Nodes of the domain ``ai.storyloom``, as ``torch.export`` sees them. Their bodies are in ``functions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from storyloom_export.functions import DOMAIN, VERSION
from storyloom_kernels import ForegroundMethod


def cross_frame_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bounds: Tensor) -> Tensor:
    """K1: q, k, v [R, N, H, d], mask bool [R, N], bounds int32 [R, 2] -> [R, N, H, d]."""
    rows, positions = mask.shape
    index, offsets = _nodes("Bank", [mask], [(torch.int32, (rows * positions,)), (torch.int32, (rows + 1,))])
    return _nodes("CrossFrameAttention", [q, k, v, index, offsets, bounds], [(q.dtype, q.shape)])[0]


def cross_attention_with_maps(q: Tensor, k: Tensor, v: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
    """K2: q [R, N, H, d], k, v [R, T, H, d], token_mask bool [R, K, T] -> [R, N, H, d] and maps float32 [R, K, N]."""
    rows, positions, heads, _ = q.shape
    made = [(q.dtype, q.shape), (torch.float32, (rows, heads, token_mask.shape[1], positions))]
    out, maps = _nodes("CrossAttentionWithMaps", [q, k, v, token_mask], made)
    return out, maps.mean(1)


def identity_attention(
    attended: Tensor,
    q: Tensor,
    identity_kv: tuple[Tensor, Tensor],
    streams: tuple[Tensor, Tensor, Tensor],
    maps: Tensor,
    present: Tensor,
    source_of_row: Tensor,
) -> Tensor:
    """The rest of K2: ``attended`` and q [R, N, H, d], tokens' keys and values [R, I, H, d], streams' ends, scale and
    owner [R, C], ``maps`` float32 [S, K, N], ``present`` bool [S, K], ``source_of_row`` int64 [R] -> [R, N, H, d].
    """
    ends, scale, owner = streams
    inputs = [attended, q, *identity_kv, ends, scale, owner.int(), maps, present, source_of_row.int()]
    return _nodes("IdentityAttention", inputs, [(attended.dtype, attended.shape)])[0]


def foreground(maps: Tensor, method: ForegroundMethod, value: float | None) -> Tensor:
    """K3: float32 [S, K, N] -> bool [S, K, N]."""
    name = {"otsu": "ForegroundOtsu", "quantile": "ForegroundQuantile", "fixed": "ForegroundFixed"}[method]
    attributes = {} if value is None else {"value": value}
    return _nodes(name, [maps], [(torch.bool, maps.shape)], attributes)[0]


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """K4: [B, C, h, w] -> the same."""
    attributes = {"groups": groups, "epsilon": eps}
    return _nodes("GroupNormSilu", [x, weight, bias], [(x.dtype, x.shape)], attributes)[0]


def _nodes(
    name: str,
    inputs: list[Tensor],
    outputs: list[tuple[torch.dtype, Any]],
    attributes: Mapping[str, int | float] | None = None,
) -> tuple[Tensor, ...]:
    made: Any = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{name}",
        inputs,
        dict(attributes or {}),
        dtypes=[dtype for dtype, _ in outputs],
        shapes=[shape for _, shape in outputs],
        version=VERSION,
    )
    # torch gives them the CPU; on the meta device that would not go together with the rest.
    return tuple(made) if inputs[0].device.type == "cpu" else tuple(tensor.to(inputs[0].device) for tensor in made)
