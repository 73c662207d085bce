"""Ops on tensors for attention across the frames of a story. Knows no diffusion and no server."""

from storyloom_kernels.foreground import ForegroundMethod, foreground, normalise_maps, union
from storyloom_kernels.layout import GroupLayout
from storyloom_kernels.reference import attention_maps, cross_attention_with_maps, cross_frame_attention

__all__ = [
    "ForegroundMethod",
    "GroupLayout",
    "attention_maps",
    "cross_attention_with_maps",
    "cross_frame_attention",
    "foreground",
    "normalise_maps",
    "union",
]
