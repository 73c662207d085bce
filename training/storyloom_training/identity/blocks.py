"""Parts that the encoders' networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyloom_training.identity.labels import NOT_SHOWN


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (He et al., 2015); halves the size where `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        shortcut = self.shortcut(F.avg_pool2d(x, 2) if self.stride == 2 else x)
        return F.relu(self.second_norm(self.second(inner)) + shortcut)


class Separable(nn.Module):
    """A depthwise 3x3 convolution and a pointwise one, each with batch norm and ReLU (MobileNet, Howard, 2017)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip
        self.skips = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result + x if self.skips else result


@torch.no_grad()
def whiten(stem: nn.Conv2d, pictures: Tensor) -> None:
    """Starts a first convolution with the principal components of the pictures' patches, at equal variance.

    Edges are faint beside flat colour; a whitened stem shows both to the layers above from the first step.
    """
    size, count = stem.kernel_size[0], stem.out_channels // 2
    patches = F.unfold(pictures, size, stride=size).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T.cov())
    strongest = (vectors / (values + 1e-3).sqrt()).T.flip(0)[:count].reshape(-1, 3, size, size)
    stem.weight[: 2 * len(strongest)] = torch.cat((strongest, -strongest))


class Heads(nn.Module):
    """Linear classifiers, one per attribute, on states [n, width] or, one row each, on [n, attributes, width]."""

    def __init__(self, width: int, attributes: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(choices)) for choices in attributes.values())

    def forward(self, states: Tensor) -> list[Tensor]:
        rows = states.unbind(1) if states.ndim == 3 else [states] * len(self.heads)
        return [head(row) for head, row in zip(self.heads, rows, strict=True)]


def named_loss(scores: list[Tensor], labels: Tensor) -> Tensor:
    """Mean over attributes of the cross entropy of what is shown; `labels` int64 [n, attributes]."""
    losses = []
    for score, wanted in zip(scores, labels.T, strict=True):
        shown = (wanted != NOT_SHOWN).sum().clamp(min=1)
        losses.append(F.cross_entropy(score.float(), wanted, ignore_index=NOT_SHOWN, reduction="sum") / shown)
    return torch.stack(losses).mean()


def named_right(scores: list[Tensor], labels: Tensor) -> Tensor:
    """Fraction of the shown attributes named right."""
    chosen = torch.stack([score.argmax(1) for score in scores], 1)
    return ((chosen == labels) & (labels != NOT_SHOWN)).sum() / (labels != NOT_SHOWN).sum().clamp(min=1)


def named_accuracy(scores: list[Tensor], labels: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Fraction named right of each attribute that is shown anywhere, and "mean" over them."""
    table = {}
    for name, score, wanted in zip(names, scores, labels.T, strict=True):
        shown = wanted != NOT_SHOWN
        if shown.any():
            table[name] = round(float((score.argmax(1)[shown] == wanted[shown]).float().mean()), 4)
    return table | {"mean": round(sum(table.values()) / len(table), 4)}


def to_input(pixels: Tensor) -> Tensor:
    """uint8 [n, h, w, 3] RGB -> float32 [n, 3, h, w] in [-1, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def augment(pictures: Tensor, draw: torch.Generator, *, shifts: bool = True) -> Tensor:
    """Softens, shifts, tints and grains a batch in [-1, 1], so that made pictures read like rendered ones."""
    count, _, height, width = pictures.shape
    if torch.rand((), generator=draw) < 0.5:
        factor = 0.35 + 0.6 * torch.rand((), generator=draw).item()
        small = F.interpolate(pictures, scale_factor=factor, mode="bilinear", antialias=True)
        pictures = F.interpolate(small, (height, width), mode="bilinear")
    if shifts:
        by = torch.randint(-height // 40, height // 40 + 1, (2,), generator=draw).tolist()
        pictures = torch.roll(pictures, by, (2, 3))
    gain = 1 + 0.16 * (torch.rand(count, 3, 1, 1, generator=draw) - 0.5)
    offset = 0.16 * (torch.rand(count, 1, 1, 1, generator=draw) - 0.5)
    grain = 0.06 * torch.rand(count, 1, 1, 1, generator=draw)
    return pictures * gain + offset + grain * torch.randn(pictures.shape, generator=draw)
