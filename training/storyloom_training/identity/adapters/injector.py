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
from storyloom_training.identity.adapters.references import NOBODY
from storyloom_training.identity.adapters.trainee import Trainee, inputs_of

NAMES = ("face", "face_states")


def injector_sizes(plan: InjectorRecipe, features: PeopleFeatures, unet: Any) -> InjectorSizes:
    return InjectorSizes(
        state_dim=features.face_states.shape[-1],
        dim=unet.config.cross_attention_dim,
        tokens=plan.tokens,
        face_dim=features.face.shape[-1],
        depth=plan.depth,
        heads=plan.heads,
        head_dim=plan.head_dim,
        stacked=plan.references == "stacked",
    )


class InjectorTrainee(Trainee):
    """With shuffled references a person's stream holds the tokens of one reference; stacked, of all."""

    maker: StorynizorInjector

    def __init__(self, sizes: InjectorSizes, unet: Any) -> None:
        super().__init__(StorynizorInjector(sizes), unet)

    def tokens_of(self, features: PeopleFeatures, entries: Tensor) -> Tensor:
        """Entries int64 [n] -> tokens [n, tokens, width]."""
        made: Tensor = self.maker(*(features.take(name, entries) for name in NAMES))
        return made

    def streams(self, features: PeopleFeatures, references: References) -> IdentityStreams:
        there = references.entries != NOBODY
        made: Tensor = self.maker(*inputs_of(features, references, NAMES))
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
