"""Ops on tensors for attention across the frames of a story. Knows no diffusion and no server."""

from storyloom_kernels.bank import compact
from storyloom_kernels.foreground import ForegroundMethod, normalise_maps, union
from storyloom_kernels.functional import (
    cross_attention_with_maps,
    cross_frame_attention,
    foreground,
    group_norm_silu,
    identity_cross_attention,
)
from storyloom_kernels.implementations import Implementation
from storyloom_kernels.layout import GroupLayout
from storyloom_kernels.reference import attention_maps, identity_maps

__all__ = [
    "ForegroundMethod",
    "GroupLayout",
    "Implementation",
    "attention_maps",
    "compact",
    "cross_attention_with_maps",
    "cross_frame_attention",
    "foreground",
    "group_norm_silu",
    "identity_cross_attention",
    "identity_maps",
    "normalise_maps",
    "union",
]
