"""The stories that are scored: one or two held-out people, a reference picture of each. All follows from the index."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from storyloom_model.prompts import ComposedPrompt
from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.captions import describe_briefly, describe_cast, write_caption
from storyloom_training.storydb.groups import FrameRecord, Group, Split, sample_group
from storyloom_training.storydb.people import Person
from storyloom_training.storydb.picture import Picture, render

REFERENCE_SIZE = 256  # pixels
_CANDIDATES = 20  # frames drawn per case, each in another scene; close-ups among them are passed over
_SPREAD = 100_000  # index distance between cases of one and of two people, which are drawn from the same numbers


class Saying(StrEnum):
    """How much prompts say of people who have references: "a woman", or "a woman wearing a red sweater"."""

    BRIEF = "brief"
    CLOTHES = "clothes"


@dataclass(frozen=True)
class IdentityCase:
    """One story.

    ``group.frames[i]`` is what frame i is to show, as ``generic[i]`` says it of people as briefly as its ``Saying`` and
    ``described[i]`` of people told in words. ``references[c]`` shows character c alone, in a scene, pose and
    expression of its own.
    """

    index: int
    group: Group
    generic: tuple[ComposedPrompt, ...]
    described: tuple[ComposedPrompt, ...]
    references: tuple[Picture, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The characters, left to right."""
        return tuple(f"character-{place}" for place in range(len(self.group.cast)))


def identity_case(index: int, people: int, frames: int, saying: Saying = Saying.BRIEF) -> IdentityCase:
    """Makes case ``index`` of those with this number of people, as portraits and full-body pictures.

    Raises:
        ValueError: more frames than there are such candidates.
    """
    drawn = sample_group(Split.TEST, index + people * _SPREAD, people=people, frames=_CANDIDATES)
    chosen = tuple(record for record in drawn.frames if record.framing != "close-up")[:frames]
    if len(chosen) < frames:
        raise ValueError(f"case {index} has {len(chosen)} scenes without close-ups; ask for at most that many frames")
    group = replace(drawn, frames=chosen)
    said = tuple(_said(person, saying, f"{group.index}:{place}") for place, person in enumerate(group.cast))
    descriptions = tuple(description.text for description in describe_cast(group))
    return IdentityCase(
        index=index,
        group=group,
        generic=_prompts(group, said),
        described=_prompts(group, descriptions),
        references=tuple(_reference(group, place) for place in range(people)),
    )


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A picture [h, w, 3] as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _said(person: Person, saying: Saying, seed: str) -> str:
    if saying is Saying.BRIEF:
        return f"a {words.NOUN[person.age, person.gender][0]}"
    rng = Random(f"saying:{seed}")  # noqa: S311
    while True:
        description = describe_briefly(rng, person, clothes=True)
        if "top" in description.stated:
            return description.text


def _reference(group: Group, place: int) -> Picture:
    """A portrait of one of the cast, in a scene that no frame of the story has."""
    rng = Random(f"reference:{group.index}:{place}")  # noqa: S311 - pictures, not secrets
    taken = {record.scene for record in group.frames}
    record = FrameRecord(
        scene=rng.choice([scene for scene in words.SCENES if scene not in taken]),
        time="day",
        framing="portrait",
        poses=("standing",),
        expressions=(rng.choice(words.EXPRESSIONS),),
        seed=rng.getrandbits(48),
    )
    return render(replace(group, cast=(group.cast[place],), frames=(record,)), 0, REFERENCE_SIZE)


def _prompts(group: Group, descriptions: tuple[str, ...]) -> tuple[ComposedPrompt, ...]:
    return tuple(_prompt(group, position, descriptions) for position in range(len(group.frames)))


def _prompt(group: Group, position: int, descriptions: tuple[str, ...]) -> ComposedPrompt:
    """Words one frame. Some captions leave the framing open; those are drawn anew, as it decides what can be seen."""
    rng = Random(f"identity:{group.index}:{position}")  # noqa: S311
    record = group.frames[position]
    while True:
        caption = write_caption(rng, record, descriptions)
        if caption.text.startswith(words.FRAMINGS[record.framing]):
            spans = {f"character-{place}": (span,) for place, span in enumerate(caption.spans)}
            return ComposedPrompt(caption.text, spans)
