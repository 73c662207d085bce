"""The stories that are scored: one person each, of identities that no training saw. All follows from the index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

from benchmarks.quality.attributes import PERSON, VISIBLE, read_as
from storyloom_model.prompts import ComposedPrompt
from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.captions import Description, describe_cast, write_caption
from storyloom_training.storydb.groups import FrameRecord, Group, Split, sample_group

CHARACTER = "hero"
_CANDIDATES = 20  # frames drawn per story, each in another scene; close-ups among them are passed over


@dataclass(frozen=True)
class BenchStory:
    """One story: a cast of one in frames of different scenes.

    `description` is what every frame's prompt says of the person; `prompts[i]` belongs to `group.frames[i]`.
    """

    index: int
    group: Group
    description: Description
    prompts: tuple[ComposedPrompt, ...]

    @cached_property
    def stated(self) -> dict[str, frozenset[str]]:
        """The person's attributes that the prompts state -> the values that fit the words."""
        values = read_as(self.group.cast[0])
        stated = {name: frozenset({values[name]}) for name in PERSON if name in self.description.stated}
        style = values["glasses"]
        if "glasses" in stated and style in ("round", "square") and style not in self.description.text:
            stated["glasses"] = frozenset({"round", "square"})
        return stated

    def visible(self, frame: int) -> frozenset[str]:
        """The attributes that a frame's framing shows."""
        return VISIBLE[self.group.frames[frame].framing]


def bench_story(index: int, frames: int) -> BenchStory:
    """Makes story `index`, as portraits and full-body pictures in `frames` different scenes.

    Raises:
        ValueError: more frames than there are such candidates.
    """
    drawn = sample_group(Split.TEST, index, people=1, frames=_CANDIDATES)
    chosen = tuple(record for record in drawn.frames if record.framing != "close-up")[:frames]
    if len(chosen) < frames:
        raise ValueError(f"story {index} has {len(chosen)} scenes without close-ups; ask for at most that many frames")
    group = replace(drawn, frames=chosen)
    description = describe_cast(group)[0]
    prompts = tuple(_prompt(index, position, record, description.text) for position, record in enumerate(chosen))
    return BenchStory(index, group, description, prompts)


def _prompt(index: int, position: int, record: FrameRecord, description: str) -> ComposedPrompt:
    """Words one frame. Some captions leave the framing open; those are drawn anew, as it decides what can be seen."""
    rng = Random(f"quality:{index}:{position}")  # noqa: S311 - wording, not secrets
    while True:
        caption = write_caption(rng, record, (description,))
        if caption.text.startswith(words.FRAMINGS[record.framing]):
            return ComposedPrompt(caption.text, {CHARACTER: caption.spans})
