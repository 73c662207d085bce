"""A finished story: collecting it from events, writing it to a folder, reading it back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from storyloom._errors import Problem, ServerError, StoryFileError
from storyloom._events import Accepted, Done, FrameDone, Picture, StoryEvent, Timings
from storyloom._sheet import contact_sheet
from storyloom._story import Settings, Story
from storyloom._version import __version__

_RECORD = "story.json"
_SHEET = "contact-sheet.png"
# Their pictures are the caller's; the record says which they were by their digests.
_WITHOUT_PICTURES = {
    "characters": {"__all__": {"references", "keep", "identity_scale", "blend"}},
    "frames": {"__all__": {"pose"}},
}


@dataclass(frozen=True)
class StoryResult:
    """A story with its pictures.

    :ivar story_id: given by the server.
    :ivar story: as it was sent.
    :ivar settings: the ones used, with every default filled in.
    :ivar pictures: one PNG for each frame, in order.
    :ivar seeds: one for each frame.
    :ivar prompts: the text that the model was given for each frame.
    :ivar consistency: how much each character agrees with itself across the frames, from 0 to 1; see `Done`.
    """

    story_id: str
    story: Story
    settings: Settings
    pictures: tuple[Picture, ...]
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    timings: Timings
    consistency: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def frames(self) -> tuple[Image.Image, ...]:
        """The pictures, decoded once."""
        return tuple(picture.open() for picture in self.pictures)

    def contact_sheet(self, columns: int | None = None) -> Image.Image:
        """Returns all pictures in a grid, with captions and the title.

        :param columns: pictures in a row; None for a grid close to a square.
        """
        return contact_sheet(self.frames, self.story.captions, title=self.story.title, columns=columns)

    def save(self, folder: str | PathLike[str]) -> Path:
        """Writes ``frame-01.png`` and so on, ``contact-sheet.png`` and ``story.json``; returns the folder.

        The folder is made if need be. Frames of an earlier result in it are replaced, and removed if there were more.
        ``story.json`` is written last: where it is, everything is.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / _RECORD
        if record.exists():
            record.unlink()
            for old in folder.iterdir():
                if re.fullmatch(r"frame-\d+\.png", old.name):
                    old.unlink()
        names = frame_names(len(self.pictures))
        for name, picture in zip(names, self.pictures, strict=True):
            (folder / name).write_bytes(picture.png)
        self.contact_sheet().save(folder / _SHEET)
        record.write_text(json.dumps(self._record(names), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> StoryResult:
        """Reads what `save` wrote.

        :raises StoryFileError: when the folder has no complete result.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            frames = record["frames"]
            return cls(
                story_id=record["story_id"],
                story=Story.model_validate(record["story"]),
                settings=Settings.model_validate(record["settings"]),
                pictures=tuple(
                    Picture((folder / frame["file"]).read_bytes(), frame["width"], frame["height"]) for frame in frames
                ),
                seeds=tuple(frame["seed"] for frame in frames),
                prompts=tuple(frame["prompt"] for frame in frames),
                timings=Timings(**record["timings"]),
                consistency=record.get("consistency", {}),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = Problem(f"holds no complete result ({type(error).__name__}: {error}); generate the story again")
            raise StoryFileError(str(folder), [problem]) from error

    def _record(self, names: Iterable[str]) -> dict[str, Any]:
        rows = zip(names, self.pictures, self.seeds, self.prompts, self.story.captions, strict=True)
        return {
            "storyloom": {"client": __version__, "contract": "storyloom.v1"},
            "story_id": self.story_id,
            "model": self.settings.model,
            "story": self.story.model_dump(mode="json", exclude_unset=True, exclude=_WITHOUT_PICTURES),
            "references": {
                name: [sha256(reference.picture).hexdigest() for reference in character.references]
                for name, character in self.story.characters.items()
                if character.references
            },
            "poses": {
                str(index): sha256(frame.pose.picture).hexdigest()
                for index, frame in enumerate(self.story.frames)
                if frame.pose is not None
            },
            "settings": self.settings.model_dump(mode="json"),
            "contact_sheet": _SHEET,
            "frames": [
                {
                    "file": name,
                    "caption": caption,
                    "prompt": prompt,
                    "seed": seed,
                    "width": picture.width,
                    "height": picture.height,
                }
                for name, picture, seed, prompt, caption in rows
            ],
            "timings": asdict(self.timings),
            "consistency": dict(self.consistency),
        }


def frame_names(count: int) -> list[str]:
    """Returns ``["frame-01.png", ...]``, numbered from 1, with as many digits as sorting by name needs."""
    digits = max(2, len(str(count)))
    return [f"frame-{number:0{digits}}.png" for number in range(1, count + 1)]


class StoryCollector:
    """Makes a `StoryResult` of a story's events."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._accepted: Accepted | None = None
        self._frames: dict[int, FrameDone] = {}
        self._done: Done | None = None

    def add(self, event: StoryEvent) -> None:
        """Takes the next event of the story."""
        match event:
            case Accepted():
                self._accepted = event
            case FrameDone():
                self._frames[event.frame_index] = event
            case Done():
                self._done = event

    def result(self) -> StoryResult:
        """Returns the finished story.

        :raises ServerError: when the server left out a frame or another event that it owes.
        """
        missing = [index for index in range(len(self._story.frames)) if index not in self._frames]
        if self._accepted is None or self._done is None or missing:
            lost = f"frames {missing}" if missing else "the accepted or the done event"
            raise ServerError(f"the server ended the story without sending {lost}; generate it again")
        frames = [self._frames[index] for index in range(len(self._story.frames))]
        return StoryResult(
            story_id=self._done.story_id,
            story=self._story,
            settings=self._accepted.settings,
            pictures=tuple(frame.picture for frame in frames),
            seeds=tuple(frame.seed for frame in frames),
            prompts=tuple(frame.prompt for frame in frames),
            timings=self._done.timings,
            consistency=self._done.consistency,
        )
