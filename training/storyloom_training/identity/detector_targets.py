"""What each anchor of the face detector should say about a batch of pictures, and how batches are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from storyloom_training.identity.scenes import SceneSet

RANGES = (0.0, 22.0, 36.0, 58.0, 90.0, 145.0, 1e9)
"""Sizes of faces (root of the box's area, pixels) that stride 8's two anchors, 16's and 32's take, ascending."""
SHARED = 1.15
"""Faces within this factor of a border belong to the anchors on both sides of it."""
STRIDES = (8, 16, 32)
ANCHORS = 2
MOSAICS = 0.35
"""Fraction of training pictures that are four at half size."""


@dataclass(frozen=True)
class Targets:
    """Per picture and anchor: `kind` 1 a face, 0 none, -1 not counted; distances [4] and offsets [10] in strides."""

    kind: Tensor
    distances: Tensor
    offsets: Tensor


def assign(faces: Tensor, clear: Tensor, size: int) -> Targets:
    """Targets of pictures of `size` with `faces` [n, people, 14] in pixels (NaN: nobody); only `clear` ones count.

    A cell takes a face whose centre is within one stride of it; of several the smallest.
    """
    pieces = []
    for place, stride in enumerate(STRIDES):
        cells = torch.arange(size // stride) * float(stride)
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        points = torch.stack((x.flatten(), y.flatten()), 1)
        for anchor in range(ANCHORS):
            low, high = RANGES[2 * place + anchor] / SHARED, RANGES[2 * place + anchor + 1] * SHARED
            pieces.append(_assign_anchor(faces, clear, points, float(stride), low, high))
    levels = []
    for place in range(len(STRIDES)):
        pair = pieces[ANCHORS * place : ANCHORS * place + ANCHORS]
        levels.append([torch.stack(parts, 2).flatten(1, 2) for parts in zip(*pair, strict=True)])
    kind, distances, offsets = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
    return Targets(kind, distances, offsets)


def _assign_anchor(
    faces: Tensor, clear: Tensor, points: Tensor, stride: float, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`kind` [n, cells], distances [n, cells, 4], offsets [n, cells, 10] of one anchor of one stride."""
    wide, high_ = faces[..., 2] - faces[..., 0], faces[..., 3] - faces[..., 1]
    size = (wide * high_).clamp(min=0).sqrt()
    centre = (faces[..., None, :2] + faces[..., None, 2:4]) / 2  # [n, people, 1, 2]
    near = ((points - centre).abs() < torch.minimum(torch.tensor(stride), 0.4 * size[..., None, None])).all(-1)
    near &= ((size >= low) & (size < high))[..., None]  # NaN compares False
    taken = torch.where(near, size[..., None], torch.inf)  # [n, people, cells]
    smallest, owner = taken.min(1)
    chosen = torch.gather(faces, 1, owner[..., None].expand(-1, -1, faces.shape[2]))
    is_clear = torch.gather(clear, 1, owner)
    kind = torch.where(smallest.isinf(), 0, torch.where(is_clear, 1, -1))
    distances = torch.cat((points - chosen[..., :2], chosen[..., 2:4] - points), 2) / stride
    offsets = (chosen[..., 4:] - points.repeat(1, 5)) / stride
    return kind, torch.nan_to_num(distances), torch.nan_to_num(offsets)


def draw_batch(data: SceneSet, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures uint8 [n, s, s, 3], faces [n, people, 14], `clear` [n, people]: zoomed, mirrored, mosaics."""
    rows = [_mosaic(data, draw) if _chance(draw) < MOSAICS else _zoomed(data, draw) for _ in range(count)]
    most = max(len(faces) for _, faces, _ in rows)
    faces = np.full((count, most, 14), np.nan, np.float32)
    clear = np.zeros((count, most), np.bool_)
    for index, (_, found, seen) in enumerate(rows):
        faces[index, : len(found)], clear[index, : len(found)] = found, seen
    return torch.from_numpy(np.stack([row[0] for row in rows])), torch.from_numpy(faces), torch.from_numpy(clear)


Row = tuple[np.ndarray, np.ndarray, np.ndarray]


def _chance(draw: torch.Generator) -> float:
    return torch.rand((), generator=draw).item()


def _moved(faces: np.ndarray, scale: float, x: float, y: float) -> np.ndarray:
    return faces * np.float32(scale) + np.tile(np.array([x, y], np.float32), 7)


def _one(data: SceneSet, draw: torch.Generator) -> Row:
    index = int(torch.randint(len(data), (), generator=draw))
    pixels, faces, clear = np.asarray(data.pixels[index]), data.faces[index], data.clear[index]
    if _chance(draw) < 0.5:
        return pixels, faces, clear
    width = pixels.shape[1]
    left, top, right, bottom = faces[:, :4].T
    points = faces[:, 4:].reshape(-1, 5, 2)[:, [1, 0, 2, 4, 3]]  # the landmark on the picture's left comes first
    mirrored = np.stack((width - points[..., 0], points[..., 1]), -1).reshape(-1, 10)
    return pixels[:, ::-1], np.column_stack((width - right, top, width - left, bottom, mirrored)), clear


def _mosaic(data: SceneSet, draw: torch.Generator) -> Row:
    import cv2

    parts = [_one(data, draw) for _ in range(4)]
    half = parts[0][0].shape[0] // 2
    small = [
        cv2.resize(np.ascontiguousarray(pixels), (half, half), interpolation=cv2.INTER_AREA) for pixels, _, _ in parts
    ]
    rows = [np.concatenate(small[:2], 1), np.concatenate(small[2:], 1)]
    corners = ((0, 0), (half, 0), (0, half), (half, half))
    faces = [_moved(faces, 0.5, x, y) for (_, faces, _), (x, y) in zip(parts, corners, strict=True)]
    return np.concatenate(rows), np.concatenate(faces), np.concatenate([clear for _, _, clear in parts])


def _zoomed(data: SceneSet, draw: torch.Generator) -> Row:
    import cv2

    pixels, faces, clear = _one(data, draw)
    size = pixels.shape[0]
    scale = 0.6 * (2.4 / 0.6) ** _chance(draw)
    free = size - scale * size
    x, y = free * _chance(draw), free * _chance(draw)
    transform = np.array([[scale, 0, x], [0, scale, y]], np.float32)
    border = [255 * _chance(draw)] * 3 if _chance(draw) < 0.5 else [0.0] * 3
    window = cv2.warpAffine(np.ascontiguousarray(pixels), transform, (size, size), borderValue=border)
    moved = _moved(faces, scale, x, y)
    inside = np.clip(moved[:, [0, 1, 2, 3]], 0, size)
    area = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
    part = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1]) / np.maximum(area, 1e-6)
    faces_left = np.where(part[:, None] > 0.05, moved, np.float32(np.nan))
    return window, faces_left, clear & (part > 0.6)
