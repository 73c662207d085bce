"""The image encoder: a small CLIP vision transformer whose penultimate hidden states resamplers read.

It learns to name what crops show: aligned faces, and people cut out on white. Heads read each attribute from the
penultimate states by an attention of their own and from the projected embedding; all heads are thrown away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from storyloom_training.device import mixed_precision
from storyloom_training.identity.blocks import Heads, augment, named_loss, named_right, to_input
from storyloom_training.identity.config import ImageEncoderRecipe
from storyloom_training.identity.data import CropSet
from storyloom_training.identity.labels import ATTRIBUTES
from storyloom_training.loop import Losses, Stage, run
from storyloom_training.muon import Muon, Together

MEAN, STD = 0.5, 0.5
"""Of the pixels in [0, 1], per channel, in preprocessor_config.json."""


def build_encoder(recipe: ImageEncoderRecipe) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=recipe.width, intermediate_size=4 * recipe.width, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, image_size=recipe.size, patch_size=recipe.patch,
        projection_dim=recipe.projection, hidden_act="quick_gelu",
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


class PictureReader(nn.Module):
    """The encoder with what reads its states; only the encoder is kept."""

    def __init__(self, encoder: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.where = nn.Parameter(torch.randn(len(ATTRIBUTES), width) * 0.02)
        self.named = Heads(width, ATTRIBUTES)
        self.pooled = Heads(encoder.config.projection_dim, ATTRIBUTES)

    def forward(self, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Scores from the penultimate states and from the embedding."""
        out = self.encoder(pictures, output_hidden_states=True)
        states = self.norm(out.hidden_states[-2])
        attention = (self.where @ states.transpose(1, 2)).softmax(2)
        return self.named(attention @ states), self.pooled(out.image_embeds)


@torch.no_grad()
def principal_patches(encoder: CLIPVisionModelWithProjection, pictures: Tensor) -> None:
    """Starts the patch embedding with the principal components of the pictures' patches, at equal variance, and the
    places with about as much of the sum as the patches."""
    embedding = encoder.vision_model.embeddings.patch_embedding
    nn.init.normal_(encoder.vision_model.embeddings.position_embedding.weight, std=0.3)
    size = embedding.kernel_size[0]
    patches = F.unfold(pictures, size, stride=size).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T.cov())
    strongest = (vectors / (values + 1e-2).sqrt()).T.flip(0)[: len(embedding.weight)]
    embedding.weight[: len(strongest)] = 0.3 * strongest.view(-1, 3, size, size)


def optimizer_of(model: PictureReader, rate: float) -> Together:
    """Muon for the transformer's matrices, Adam for the rest."""
    layers = model.encoder.vision_model.encoder.layers
    matrices = [weight for weight in layers.parameters() if weight.ndim == 2]
    taken = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in taken]
    muon = Muon(matrices, lr=rate, momentum=0.9, free_scale=False)
    return Together((muon, torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)))


def train_image_encoder(
    recipe: ImageEncoderRecipe, faces: CropSet, characters: CropSet, folder: Path
) -> CLIPVisionModelWithProjection:
    """Trains from nothing, or loads the encoder where `folder` holds the finished training."""
    return train_picture_reader(recipe, faces, characters, folder).encoder


def train_picture_reader(
    recipe: ImageEncoderRecipe, faces: CropSet, characters: CropSet, folder: Path
) -> PictureReader:
    """As `train_image_encoder`, with the heads, which tell how much of a picture the states hold."""
    torch.manual_seed(recipe.seed)
    draw = torch.Generator().manual_seed(recipe.seed)
    model = PictureReader(build_encoder(recipe)).train()
    some = np.concatenate([data.pixels[:: max(1, len(data) // 150)] for data in (faces, characters)])
    principal_patches(model.encoder, to_input(torch.from_numpy(some)))
    optimizer = optimizer_of(model, recipe.learning_rate)
    stage = Stage("image encoder", folder, model, optimizer, recipe.steps, 60, 1.0, draw)

    def compute(stage: Stage) -> Losses:
        parts = []
        for data in (faces, characters):
            chosen = torch.randint(len(data), (recipe.batch // 2,), generator=draw).numpy()
            pictures = augment(to_input(torch.from_numpy(data.pixels[chosen])), draw)
            parts.append((pictures, torch.from_numpy(data.labels[chosen]).long()))
        pictures, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        flips = torch.rand(len(pictures), 1, 1, 1, generator=draw) < 0.5
        pictures = torch.where(flips, pictures.flip(3), pictures)
        with mixed_precision(pictures.device):
            named, pooled = model(pictures)
        loss = named_loss(named, labels) + named_loss(pooled, labels)
        return {"loss": loss, "right": named_right(named, labels), "pooled right": named_right(pooled, labels)}

    run(stage, compute)
    return model.eval()
