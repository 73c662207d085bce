"""InstantID in training: tokens of a face's embedding, and IdentityNet, which is shown where the face is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from storyloom_model.identity.perceiver import PerceiverSizes
from storyloom_model.identity.published.instantid import FACE_LENGTH, FaceResampler
from storyloom_model.identity.published.makers import ReferenceTokens
from storyloom_model.identity.streams import IdentityStreams, PackedStreams
from storyloom_training.config import ControlNetRecipe, InstantIdRecipe
from storyloom_training.controlnet.control import new_controlnet
from storyloom_training.identity.adapters.batches import References
from storyloom_training.identity.adapters.faces import PeopleFaces
from storyloom_training.identity.adapters.features import PeopleFeatures
from storyloom_training.identity.adapters.references import NOBODY
from storyloom_training.identity.adapters.trainee import Trainee, inputs_of

READS = ("face",)


class InstantIdTrainee(Trainee):
    """One reference a person. IdentityNet acts in frames of one person, as the engine has it."""

    maker: ReferenceTokens

    def __init__(self, plan: InstantIdRecipe, net: ControlNetRecipe, features: PeopleFeatures, unet: Any) -> None:
        width = unet.config.cross_attention_dim
        face = features.face.shape[-1]
        resampler = FaceResampler(PerceiverSizes(width, face, width, plan.heads, plan.depth), plan.tokens)
        super().__init__(ReferenceTokens(resampler, READS, face_length=FACE_LENGTH), unet)
        self.net = new_controlnet(unet, net).train().requires_grad_(True)

    def tokens_of(self, features: PeopleFeatures, entries: Tensor) -> Tensor:
        """Entries int64 [n] -> tokens [n, tokens, width]."""
        made: Tensor = self.maker.projection(FACE_LENGTH * features.take(*READS, entries))
        return made

    def streams(self, features: PeopleFeatures, references: References) -> IdentityStreams:
        made = self._tokens(features, references)
        rows, people = references.present.shape
        ends = torch.arange(1, people + 1, dtype=torch.int32) * made.shape[2]
        packed = PackedStreams(
            made.flatten(1, 2),
            ends.expand(rows, -1),
            references.present.float(),
            torch.arange(people).expand(rows, -1),
        )
        return packed.project(self.projections())

    def controls(
        self,
        faces: PeopleFaces | None,
        pictures: list[int],
        features: PeopleFeatures,
        references: References,
        noisy: Tensor,
        timesteps: Tensor,
    ) -> dict[str, Any]:
        """IdentityNet in the rows of one person, told where the face is in the row's own picture."""
        present = references.present
        rows = (present.sum(1) == 1).nonzero().flatten()
        if faces is None or not len(rows):
            return {}
        people = present[rows].int().argmax(1)
        shown = faces.drawings([pictures[row] for row in rows.tolist()], [[one] for one in people.tolist()])
        tokens = self._tokens(features, references)[rows, people]
        down, middle = self.net(noisy[rows], timesteps.expand(len(noisy))[rows], tokens, shown, return_dict=False)

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(len(noisy), *values.shape[1:]).index_copy(0, rows, values)

        return {
            "down_block_additional_residuals": tuple(spread(values) for values in down),
            "mid_block_additional_residual": spread(middle),
        }

    def _tokens(self, features: PeopleFeatures, references: References) -> Tensor:
        """[rows, people, tokens, width]; zeros for those who are not there."""
        there = references.entries[..., 0] != NOBODY
        (face,) = inputs_of(features, references, READS)
        made: Tensor = self.maker.projection(FACE_LENGTH * face)
        tokens = made.new_zeros(*there.shape, *made.shape[1:])
        tokens[there] = made
        return tokens
