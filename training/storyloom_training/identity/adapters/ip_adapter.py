"""IP-Adapter in training, in its plus form: a stream for each person, read off the whole character."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from storyloom_model.identity.perceiver import PerceiverSizes, Resampler
from storyloom_model.identity.published.makers import ReferenceTokens
from storyloom_model.identity.streams import IdentityStreams, PackedStreams
from storyloom_training.config import IpAdapterRecipe
from storyloom_training.identity.adapters.batches import References
from storyloom_training.identity.adapters.features import PeopleFeatures
from storyloom_training.identity.adapters.trainee import Trainee, inputs_of

READS = ("character_states",)


class IpAdapterTrainee(Trainee):
    """One reference a person."""

    maker: ReferenceTokens

    def __init__(self, plan: IpAdapterRecipe, features: PeopleFeatures, unet: Any) -> None:
        width = unet.config.cross_attention_dim
        states = features.character_states.shape[-1]
        resampler = Resampler(PerceiverSizes(width, states, width, plan.heads, plan.depth), plan.tokens)
        super().__init__(ReferenceTokens(resampler, READS), unet)

    def tokens_of(self, features: PeopleFeatures, entries: Tensor) -> Tensor:
        """Entries int64 [n] -> tokens [n, tokens, width]."""
        made: Tensor = self.maker.projection(features.take(*READS, entries))
        return made

    def streams(self, features: PeopleFeatures, references: References) -> IdentityStreams:
        present = references.present
        rows, people = present.shape
        made: Tensor = self.maker.projection(*inputs_of(features, references, READS))
        tokens = made.new_zeros(rows, people, *made.shape[1:])
        tokens[present] = made
        ends = torch.arange(1, people + 1, dtype=torch.int32) * made.shape[1]
        packed = PackedStreams(
            tokens.flatten(1, 2), ends.expand(rows, -1), present.float(), torch.arange(people).expand(rows, -1)
        )
        return packed.project(self.projections())
