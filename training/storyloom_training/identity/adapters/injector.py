"""Storynizor's ID-Injector in training: a stream for each person, acting where the person is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from storyloom_model.identity.storynizor import InjectorSizes, StorynizorInjector
from storyloom_model.identity.streams import IdentityStreams, PackedStreams
from storyloom_training.config import InjectorRecipe
from storyloom_training.identity.adapters.batches import References
from storyloom_training.identity.adapters.features import PeopleFeatures
from storyloom_training.identity.adapters.saying import Sayings
from storyloom_training.identity.adapters.trainee import Trainee, inputs_of


def injector_sizes(plan: InjectorRecipe, features: PeopleFeatures, unet: Any) -> InjectorSizes:
    return InjectorSizes(
        state_dim=features.face_states.shape[-1],
        dim=unet.config.cross_attention_dim,
        tokens=plan.tokens,
        face_dim=features.face.shape[-1],
        depth=plan.depth,
        heads=plan.heads,
        head_dim=plan.head_dim,
        stacked=plan.stacked,
    )


class InjectorTrainee(Trainee):
    """With shuffled references a person's stream holds the tokens of one reference; stacked, of all.

    While there are `sayings`, tokens are what the text says of the people, and the maker has no part.
    """

    maker: StorynizorInjector

    def __init__(self, sizes: InjectorSizes, unet: Any) -> None:
        super().__init__(StorynizorInjector(sizes), unet)
        self.sayings: Sayings | None = None

    def streams(self, features: PeopleFeatures, references: References) -> IdentityStreams:
        there = references.entries >= 0
        made = self._tokens(features, references, there)
        tokens = made.new_zeros(*there.shape, *made.shape[1:])
        tokens[there] = made
        rows, people = there.shape[:2]
        length = there.shape[2] * made.shape[1]
        ends = torch.arange(1, people + 1, dtype=torch.int32) * length
        packed = PackedStreams(
            tokens.flatten(1, 3),
            ends.expand(rows, -1),
            references.present.float(),
            torch.arange(people).expand(rows, -1),
        )
        return packed.project(self.projections())

    def _tokens(self, features: PeopleFeatures, references: References, there: Tensor) -> Tensor:
        """Of every reference there is, [n, tokens, width]."""
        if self.sayings is not None:
            zeroed = references.zeroed.view(-1, 1, 1).expand_as(there)[there]
            return torch.where(zeroed.view(-1, 1, 1), 0.0, self.sayings(references.entries[there]))
        made: Tensor = self.maker(*inputs_of(features, references, ("face", "face_states")))
        return made
