"""What trains of an identity adapter, whatever its method."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTokenizer

from storyloom_model.attention import AttentionPass
from storyloom_model.identity.adapter import LayerProjections, LowRank, StreamMaker
from storyloom_model.identity.streams import IdentityStreams
from storyloom_training.base import TextToImage
from storyloom_training.identity.adapters.batches import IdentityBatch, References
from storyloom_training.identity.adapters.faces import PeopleFaces
from storyloom_training.identity.adapters.features import PeopleFeatures
from storyloom_training.identity.adapters.references import NOBODY
from storyloom_training.identity.adapters.said import Said, said_plainly


class IdentityLayer(nn.Module):
    """Keys and values of one cross-attention layer for identity tokens; they start as the text's, as in IP-Adapter."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.to_k, self.to_v = (
            nn.Parameter(linear.weight.detach().float().clone()) for linear in (attention.to_k, attention.to_v)
        )

    def projections(self) -> LayerProjections:
        return LayerProjections(self.to_k, self.to_v)


class Trainee(nn.Module):
    """Maker and layers of an adapter in training."""

    def __init__(self, maker: StreamMaker, unet: Any) -> None:
        super().__init__()
        self.maker = maker
        layers = [module for module in unet.modules() if isinstance(module, Attention) and module.is_cross_attention]
        self.layers = nn.ModuleList(IdentityLayer(layer) for layer in layers)

    def projections(self) -> list[LayerProjections]:
        return [layer.projections() for layer in self.layers if isinstance(layer, IdentityLayer)]

    @property
    def low_rank(self) -> dict[str, LowRank]:
        """Changes of the UNet's weights, by parameter name."""
        return {}

    def streams(self, features: PeopleFeatures, references: References) -> IdentityStreams | None:
        """The streams of a batch's rows, with gradient; None: the method has none."""
        return None

    def said(
        self,
        model: TextToImage,
        tokenizer: CLIPTokenizer,
        batch: IdentityBatch,
        features: PeopleFeatures,
        references: References,
    ) -> Said:
        """The text of a batch's rows; methods that write persons into it do so here, with gradient."""
        return said_plainly(model, tokenizer, batch)

    def controls(
        self,
        faces: PeopleFaces | None,
        pictures: list[int],
        features: PeopleFeatures,
        references: References,
        noisy: Tensor,
        timesteps: Tensor,
    ) -> dict[str, Any]:
        """What is added to the UNet, as its keyword arguments, with gradient.

        Args:
            faces: where they are in the bench's pictures.
            pictures: their numbers, one a row.
            features, references: of the rows.
            noisy: [rows, c, h, w].
            timesteps: int64 [rows], or one for all.
        """
        return {}

    def regularise(self, story: AttentionPass, masks: Tensor, references: References) -> dict[str, Tensor]:
        """Weighted losses beside the diffusion loss, by name, after a pass; `masks` [rows, people, h, w]."""
        return {}


def inputs_of(features: PeopleFeatures, references: References, names: tuple[str, ...]) -> list[Tensor]:
    """Some features of all references there are, [n, ...] each, in the order of rows, people and references."""
    entries = references.entries[references.entries != NOBODY]
    zeroed = references.of_pairs(references.zeroed)
    found = (features.take(name, entries) for name in names)
    return [torch.where(zeroed.view(-1, *[1] * (values.ndim - 1)), 0.0, values) for values in found]
