"""Batches of identity training: groups, their captions, and whom each frame gets references of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from storyloom_training.config import AdapterRecipe
from storyloom_training.identity.adapters.captions import IdentityCaptioner
from storyloom_training.identity.adapters.features import PeopleFeatures
from storyloom_training.identity.adapters.references import (
    NOBODY,
    own_references,
    several_references,
    shuffled_references,
    stacked_references,
)
from storyloom_training.storydb.captions import Caption
from storyloom_training.storydb.dataset import MAX_PEOPLE, StoryDB
from storyloom_training.synchronizer import token_masks


@dataclass(frozen=True)
class References:
    """Entries of `PeopleFeatures`, int64 [rows, people, references], NOBODY where there is none.

    Where `zeroed`, bool [rows], features are zeros, as under the negative prompt. Where `faceless` or `lookless`, a
    method that reads face and character crop goes without the tokens of the one or the other.
    """

    entries: Tensor
    zeroed: Tensor
    faceless: Tensor
    lookless: Tensor

    @classmethod
    def whole(cls, entries: Tensor) -> References:
        """References of which nothing is left out."""
        nothing = torch.zeros(len(entries), dtype=torch.bool)
        return cls(entries, nothing, nothing, nothing)

    def under_negatives(self) -> References:
        """The rows of the negative prompt, then these."""
        nothing = torch.zeros_like(self.zeroed)
        return References(
            self.entries.repeat(2, 1, 1),
            torch.cat((~nothing, self.zeroed)),
            torch.cat((nothing, self.faceless)),
            torch.cat((nothing, self.lookless)),
        )

    def of_pairs(self, flags: Tensor) -> Tensor:
        """Flags of rows, bool [rows], for each reference there is, bool [n]."""
        there = self.entries != NOBODY
        return flags.view(-1, 1, 1).expand_as(there)[there]

    @property
    def present(self) -> Tensor:
        """bool [rows, people]."""
        return self.entries[..., 0] != NOBODY


@dataclass(frozen=True)
class IdentityBatch:
    """Rows in groups of equally many frames. A dropped caption is None."""

    pictures: list[int]
    people: list[int]
    captions: list[Caption | None]
    references: References

    @property
    def texts(self) -> list[str]:
        return ["" if caption is None else caption.text for caption in self.captions]

    def token_masks(self, tokenizer: CLIPTokenizer, length: int) -> Tensor:
        """bool [rows, people, length]: the tokens of each person.

        In a dropped caption they are the end token for all, which says that they are there, and not where.
        """
        masks = token_masks(tokenizer, self.captions, length)
        for row, (caption, people) in enumerate(zip(self.captions, self.people, strict=True)):
            if caption is None:
                masks[row, :people, 1] = True
        return masks


@dataclass(frozen=True)
class BatchSource:
    """Draws batches of a data set with features."""

    data: StoryDB
    features: PeopleFeatures
    plan: AdapterRecipe

    def draw(self, draw: torch.Generator, step: int) -> IdentityBatch:
        """A batch of random groups, the share of the recipe with several people."""
        together = round(self.plan.together_share * self.plan.groups)
        alone, crowds = self.pools
        groups = [*_some(crowds, together, draw), *_some(alone, self.plan.groups - together, draw)]
        order = torch.randperm(len(groups), generator=draw).tolist()
        return self.of_groups([groups[place] for place in order], draw, step, drop=True)

    def of_groups(self, groups: list[int], draw: torch.Generator, step: int, *, drop: bool) -> IdentityBatch:
        """A batch of these groups. With `drop`, some go without their captions, their references or both."""
        plan = self.plan
        captioner = IdentityCaptioner(self.data, plan.full_odds, plan.clothes_odds)
        pictures: list[int] = []
        people: list[int] = []
        captions: list[Caption | None] = []
        entries: list[Tensor] = []
        dropped: list[tuple[bool, bool, bool]] = []
        for group in groups:
            frames = torch.randperm(self.data.frames, generator=draw)[: plan.frames].tolist()
            chance = float(torch.rand((), generator=draw)) if drop else float("inf")
            no_text = chance < plan.text_dropout + plan.both_dropout
            no_identity = plan.text_dropout <= chance < plan.text_dropout + plan.both_dropout + plan.identity_dropout
            pictures += [group * self.data.frames + frame for frame in frames]
            people += [len(self.data.group(group).cast)] * plan.frames
            captions += [None] * plan.frames if no_text else captioner(group, frames, step)
            entries.append(self._references(group, frames, draw))
            part = float(torch.rand((), generator=draw)) if drop and plan.part_dropout else 1.0
            faceless, lookless = part < plan.part_dropout, plan.part_dropout <= part < 2 * plan.part_dropout
            dropped += [(no_identity, faceless, lookless)] * plan.frames
        references = References(torch.cat(entries), *torch.tensor(dropped).unbind(1))
        return IdentityBatch(pictures, people, captions, references)

    @cached_property
    def pools(self) -> tuple[Tensor, Tensor]:
        """Groups of one person, and those in which several people's faces are seen; all of them where there is none."""
        everyone = torch.arange(self.features.groups)
        several = (self.features.table != NOBODY).any(1).sum(1) > 1
        alone, crowds = everyone[~several], everyone[several]
        return (alone if len(alone) else everyone), (crowds if len(crowds) else everyone)

    def _references(self, group: int, frames: list[int], draw: torch.Generator) -> Tensor:
        """int64 [frames, people, references]."""
        table = self.features.table[group]
        visible = table != NOBODY
        if self.plan.references == "stacked":
            chosen = stacked_references(visible, frames)
        elif self.plan.references == "own":
            chosen = own_references(visible, frames)
        elif self.plan.references == "several":
            chosen = several_references(visible, frames, draw)
        else:
            chosen = shuffled_references(visible, frames, draw)
        places = torch.arange(MAX_PEOPLE).view(1, -1, 1).expand_as(chosen)
        return torch.where(chosen == NOBODY, NOBODY, table[chosen.clamp(min=0), places])


def _some(groups: Tensor, count: int, draw: torch.Generator) -> list[int]:
    chosen: list[int] = groups[torch.randint(len(groups), (count,), generator=draw)].tolist()
    return chosen


def of_others(references: References, rows: int) -> References:
    """The same frames with the references of other people: those `rows` rows earlier, of another group.

    Where the other group has fewer people, its first person stands in.
    """
    other = references.entries.roll(rows, 0)
    other = torch.where(other == NOBODY, other[:, :1], other)
    return replace(references, entries=torch.where(references.present[..., None], other, NOBODY))
