"""StoryMaker in training: one softmax over the tokens of the background and of all people, told where each belongs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyloom_model.attention import AttentionPass
from storyloom_model.identity.adapter import LowRank
from storyloom_model.identity.storymaker import StoryMakerResampler, StoryMakerSizes, StoryMakerStreams
from storyloom_model.identity.streams import EVERYWHERE, IdentityStreams, PackedStreams
from storyloom_model.maps import resize
from storyloom_training.config import StoryMakerRecipe
from storyloom_training.identity.adapters.batches import References
from storyloom_training.identity.adapters.features import PeopleFeatures
from storyloom_training.identity.adapters.low_rank import LowRankChanges
from storyloom_training.identity.adapters.trainee import Trainee, inputs_of
from storyloom_training.storydb.dataset import MAX_PEOPLE

NAMES = ("face", "face_states", "character_states")


def storymaker_sizes(plan: StoryMakerRecipe, features: PeopleFeatures, unet: Any) -> StoryMakerSizes:
    width = unet.config.cross_attention_dim
    return StoryMakerSizes(
        width=width,
        face=features.face.shape[-1],
        states=features.character_states.shape[-1],
        face_tokens=plan.face_tokens,
        character_tokens=plan.character_tokens,
        character_width=width,
        character_heads=plan.heads,
        places=MAX_PEOPLE,
        depth=plan.depth,
        head_width=plan.head_dim,
        background=plan.background,
    )


class StoryMakerTrainee(Trainee):
    """People take the places in their order, those without a reference left out; positions beyond are not seen."""

    maker: StoryMakerStreams

    def __init__(self, sizes: StoryMakerSizes, plan: StoryMakerRecipe, unet: Any) -> None:
        super().__init__(StoryMakerStreams(StoryMakerResampler(sizes)), unet)
        self.changes = LowRankChanges(unet, plan.rank)
        self._plan = plan

    @property
    def low_rank(self) -> dict[str, LowRank]:
        return self.changes.by_parameter()

    def tokens_of(self, features: PeopleFeatures, entries: Tensor) -> Tensor:
        """Tokens of entries int64 [n] before they get a place, [n, tokens, width]."""
        return self._tokens(*(features.take(name, entries) for name in NAMES))

    def _tokens(self, face: Tensor, face_states: Tensor, character_states: Tensor) -> Tensor:
        resampler = self.maker.resampler
        parts = (resampler.face_tokens(face, face_states), resampler.character_tokens(character_states))
        return torch.cat(parts, dim=1)

    def streams(self, features: PeopleFeatures, references: References) -> IdentityStreams:
        made = self._without_parts(self._tokens(*inputs_of(features, references, NAMES)), references)
        present = references.present
        rows, people = present.shape
        length, width = made.shape[1:]
        tokens = made.new_zeros(rows, people, length, width)
        tokens[present] = made
        order = _order(present)[..., None, None].expand_as(tokens)
        placed = self.maker.resampler.place(tokens.gather(1, order))
        ends = (present.sum(1, keepdim=True) + 1) * length
        blocks = torch.eye(people + 1).repeat_interleave(length, 1).expand(rows, -1, -1)
        if not self._plan.background:
            ends, blocks = ends - length, blocks[:, 1:, length:]
        packed = PackedStreams(
            placed, ends.int(), torch.ones(rows, 1), torch.full((rows, 1), EVERYWHERE, dtype=torch.long)
        )
        return packed.project(self.projections(), blocks)

    def regularise(self, story: AttentionPass, masks: Tensor, references: References) -> dict[str, Tensor]:
        """The paper's attention loss (equations 9 to 12): each block's attention against where it belongs."""
        if self._plan.attention_loss == 0:
            return {}
        present = references.present
        size = (masks.shape[-2], masks.shape[-1])
        maps = [layer.values.view(*layer.values.shape[:2], *layer.size) for layer in story.identity_maps]
        attention = torch.stack([resize(one, size) for one in maps]).mean(0)
        order = _order(present)
        people = (masks * present[..., None, None]).gather(1, order[..., None, None].expand_as(masks))
        counted = present.gather(1, order) & ~references.zeroed[:, None]
        if self._plan.background:
            people = torch.cat((1 - people.amax(1, keepdim=True), people), dim=1)
            counted = torch.cat((counted.any(1, keepdim=True), counted), dim=1)
        if not counted.any():
            return {}
        return {"attention": self._plan.attention_loss * F.mse_loss(attention[counted], people[counted])}

    def _without_parts(self, tokens: Tensor, references: References) -> Tensor:
        """Without the tokens of the face, or of the looks, where the batch says so."""
        split = self._plan.face_tokens
        face, looks = tokens[:, :split], tokens[:, split:]
        faceless, lookless = (references.of_pairs(flags) for flags in (references.faceless, references.lookless))
        return torch.cat(
            (face.masked_fill(faceless[:, None, None], 0.0), looks.masked_fill(lookless[:, None, None], 0.0)), dim=1
        )


def _order(present: Tensor) -> Tensor:
    """int64 [rows, people]: those who are present first, else as they were."""
    return (~present).int().argsort(dim=1, stable=True)
