"""The face recogniser: an aligned face 1x3x112x112 in [-1, 1] -> 512 numbers whose direction is the identity.

Trained as published ones are, by a margin softmax over people (CosFace, Wang et al., 2018). Beside it heads name the
attributes of the face, so that what tells people apart is found within a short training; only the network is kept.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyloom_training.device import mixed_precision
from storyloom_training.identity.blocks import Heads, Residual, augment, named_loss, named_right, to_input, whiten
from storyloom_training.identity.config import RecogniserRecipe
from storyloom_training.identity.data import CropSet
from storyloom_training.identity.labels import FACE
from storyloom_training.loop import Losses, Stage, run
from storyloom_training.muon import Muon, Together

EMBEDDING = 512


class FaceNet(nn.Module):
    """A small residual network; its last features are weighted place by place, as MobileFaceNet does (Chen, 2018)."""

    def __init__(self, widths: tuple[int, ...] = (32, 48, 80, 128), last: int = 224) -> None:
        super().__init__()
        stages = [Residual(inputs, outputs, 2) for inputs, outputs in pairwise(widths)]
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential(*stages)
        self.widen = nn.Conv2d(widths[-1], last, 1, bias=False)
        self.widen_norm = nn.BatchNorm2d(last)
        self.places = nn.Conv2d(last, last, 7, groups=last)
        self.embed = nn.Linear(last, EMBEDDING, bias=False)
        self.embed_norm = nn.BatchNorm1d(EMBEDDING, affine=False)

    def forward(self, faces: Tensor) -> Tensor:
        features = self.stages(F.relu(self.stem_norm(self.stem(faces))))
        features = F.relu(self.widen_norm(self.widen(features)))
        result: Tensor = self.embed_norm(self.embed(self.places(features).flatten(1)))
        return result


class Recognition(nn.Module):
    """The network with what trains it."""

    def __init__(self, network: nn.Module, people: int) -> None:
        super().__init__()
        self.network = network
        self.centres = nn.Parameter(torch.randn(people, EMBEDDING) * 0.05)
        self.heads = Heads(EMBEDDING, FACE)

    def cosines(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings) @ F.normalize(self.centres).T


def margin_loss(cosines: Tensor, who: Tensor, scale: float, margin: float) -> Tensor:
    """Cross entropy of the cosines to all people, the right one's lowered by `margin`."""
    lowered = cosines - margin * F.one_hot(who, cosines.shape[1])
    return F.cross_entropy(scale * lowered, who)


def optimizer_of(model: Recognition) -> Together:
    """Muon for what a batch norm follows, Adam for the rest."""
    network = model.network
    matrices = [weight for name, weight in network.named_parameters() if weight.ndim == 4 and "places" not in name]
    taken = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in taken]
    return Together((Muon(matrices, lr=0.1), torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.02)))


def train_recogniser(
    recipe: RecogniserRecipe, data: CropSet, folder: Path, network: nn.Module | None = None
) -> nn.Module:
    """Trains `network` (default `FaceNet`), or loads it where `folder` holds the finished training."""
    torch.manual_seed(recipe.seed)
    draw = torch.Generator().manual_seed(recipe.seed)
    model = Recognition(network or FaceNet(), int(data.who.max()) + 1).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels, who, labels = data.pixels, torch.from_numpy(data.who).long(), torch.from_numpy(data.labels).long()
    first = next(module for module in model.network.modules() if isinstance(module, nn.Conv2d))
    whiten(first, to_input(torch.from_numpy(pixels[: 8 * 200 : 8])))
    stage = Stage("recogniser", folder, model, optimizer_of(model), recipe.steps, 30, 1.0, draw)

    def compute(stage: Stage) -> Losses:
        chosen = torch.randint(len(data), (recipe.batch,), generator=draw)
        faces = augment(to_input(torch.from_numpy(pixels[chosen.numpy()])), draw)
        flips = torch.rand(len(faces), 1, 1, 1, generator=draw) < 0.5
        faces = torch.where(flips, faces.flip(3), faces)
        with mixed_precision(faces.device):
            embeddings = model.network(faces.contiguous(memory_format=torch.channels_last))
        embeddings = embeddings.float()
        people = margin_loss(
            model.cosines(embeddings), who[chosen], recipe.scale, recipe.margin * stage.step / stage.steps
        )
        scores = model.heads(embeddings)
        wanted = labels[chosen, : len(FACE)]
        named = named_loss(scores, wanted)
        return {
            "loss": people + recipe.named_weight * named,
            "people": people.detach(),
            "right": named_right(scores, wanted),
        }

    run(stage, compute)
    model.eval()
    return model.network
