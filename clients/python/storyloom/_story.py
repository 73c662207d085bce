"""What a story is. The same models describe a story in Python and in a story file."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, ValidationInfo
from pydantic import model_validator as _model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from storyloom._poses import Pose
from storyloom._prompts import caption, placeholders
from storyloom._references import Blend, Keep, Reference

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


class Solver(enum.StrEnum):
    """How a denoising step is taken."""

    DDIM = "ddim"
    EULER = "euler"
    UNIPC = "unipc"


def _check_not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must not be empty")
    return text


def _check_any(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    # Not a minimum length: pydantic would count only the frames that are right.
    if not frames:
        raise PydanticCustomError("no_frames", "needs at least one frame")
    return frames


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise PydanticCustomError(
            "character_name",
            "a character's name must start with a letter and hold only letters, digits, _ and -, at most 32 of them",
        )
    return name


# The ranges are those of the wire types; a model's own limits are known, and checked, by the server alone.
_UInt32 = Annotated[int, Strict(), Field(ge=0, le=2**32 - 1)]
_FreeUScale = Annotated[float, Strict(), Field(ge=0, le=4, allow_inf_nan=False)]
_Positive = Annotated[int, Strict(), Field(ge=1, le=2**32 - 1)]
_Seed = Annotated[int, Strict(), Field(ge=0, le=2**64 - 1)]
_Text = Annotated[str, AfterValidator(_check_not_blank)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Character(_Model):
    """A member of the cast. A plain string stands for its description.

    :ivar description: how the character looks, such as ``"a young woman with long red hair"``.
    :ivar id: of a character that the server keeps (see `StoryClient.create_character`); its description and its
        references are used where there are none here.
    :ivar references: pictures of it, for models with identity adapters: paths, contents of files, Pillow images, or
        `Reference`. In a story file paths are relative to the file.
    :ivar keep: what is taken over from the references; empty: all that the model can.
    :ivar identity_scale: strength of the references, 0 (none) to 2.
    :ivar blend: a character to mix in.
    :ivar region_prompt: what the second pass of `Settings.redenoising` makes of the character in its place, such as
        ``"{mia}, smiling"``; empty: its description.
    """

    description: _Text = ""
    id: _Text = ""
    references: tuple[Reference, ...] = ()
    keep: tuple[Keep, ...] = ()
    identity_scale: Annotated[float, Strict(), Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    blend: Blend | None = None
    region_prompt: _Text = ""

    @_model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"description": value} if isinstance(value, str) else value

    @_model_validator(mode="after")
    def _check_known(self) -> Self:
        if not self.description and not self.id:
            raise PydanticCustomError("no_looks", "needs a description, or the id of a character that the server keeps")
        if self.has_identity_options and not (self.references or self.id):
            raise PydanticCustomError(
                "no_references", "has keep, identity_scale, blend or region_prompt, and no references for them"
            )
        return self

    @property
    def has_identity_options(self) -> bool:
        """Whether anything is said of how references are used."""
        return bool(self.keep or self.region_prompt) or self.identity_scale is not None or self.blend is not None


class Frame(_Model):
    """One picture of a story. A plain string stands for its prompt.

    :ivar prompt: what happens; ``{name}`` stands for a character of the cast, ``{{`` for a brace.
    :ivar characters: names of characters in the picture that the prompt does not write as ``{name}``.
    :ivar seed: of this frame alone; absent: derived from the story's seed.
    :ivar pose: what the picture is to follow, for models with ControlNets: a path, the contents of a file, a Pillow
        image, or `Pose`. In a story file paths are relative to the file.
    """

    prompt: _Text
    characters: tuple[str, ...] = ()
    seed: _Seed | None = None
    pose: Pose | None = None

    @_model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value and all(item is None for item in value.values()):
            # YAML reads an unquoted {mia} as a mapping with one key and no value.
            raise PydanticCustomError("unquoted", 'put the prompt in quotes, like "{mia} is walking"')
        return {"prompt": value} if isinstance(value, str) else value


class Rounds(_Model):
    """How often the method ``story-adapter`` makes a story, with the pictures of the time before as references. What is
    absent takes the server's default. In a story file, a number stands for the count.

    :ivar count: rounds in all, the first of which is made from the prompts alone.
    :ivar first_scale: how much the pictures of the round before count in the second round, 0 to 2.
    :ivar last_scale: the same in the last round.
    """

    count: Annotated[int, Strict(), Field(ge=1, le=32)] | None = None
    first_scale: Annotated[float, Strict(), Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    last_scale: Annotated[float, Strict(), Field(ge=0, le=2, allow_inf_nan=False)] | None = None

    @_model_validator(mode="before")
    @classmethod
    def _from_count(cls, value: Any) -> Any:
        return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Consistency(_Model):
    """How frames share a character. What is absent takes the model's default.

    :ivar enabled: False generates every frame on its own.
    :ivar adapter: name of one of the model's adapters; empty: its default.
    :ivar method: name of one of the model's story methods, which say what frames see of each other; empty: its default.
    :ivar rounds: of the method ``story-adapter``.
    :ivar feature_injection: of the method ``consistory``: the story is made twice, the second time with features of the
        first at corresponding positions.
    """

    enabled: Annotated[bool, Strict()] | None = None
    adapter: str = ""
    method: str = ""
    rounds: Rounds | None = None
    feature_injection: Annotated[bool, Strict()] | None = None


class FreeU(_Model):
    """FreeU: in the first two up blocks of the model's UNet, what comes from below counts more and the lowest
    frequencies of what skip connections bring count less. What is absent takes the model's numbers. In a story file,
    ``true`` stands for all of them.

    :ivar enabled: False goes without.
    :ivar b1: multiplies half of the features that come from below in the first block, 0 to 4.
    :ivar b2: the same in the second block.
    :ivar s1: multiplies the lowest frequencies of the skip connections in the first block, 0 to 4.
    :ivar s2: the same in the second block.
    """

    enabled: Annotated[bool, Strict()] | None = None
    b1: _FreeUScale | None = None
    b2: _FreeUScale | None = None
    s1: _FreeUScale | None = None
    s2: _FreeUScale | None = None

    @_model_validator(mode="before")
    @classmethod
    def _from_switch(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class Redenoising(_Model):
    """A second pass that gives characters with references their looks, each in its own place. What is absent takes the
    server's default. In a story file, ``true`` stands for all defaults.

    :ivar enabled: False goes without.
    :ivar start: where the second pass starts, as a share of the steps, from 0 to below 1.
    :ivar mask_margin: pixels by which masks are larger than what is found of a character.
    :ivar mask_growth: pixels by which they have grown more at the end.
    :ivar retries: how often a frame is made again, with another seed, because a character with references was not found
        in it.
    """

    enabled: Annotated[bool, Strict()] | None = None
    start: Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False)] | None = None
    mask_margin: _UInt32 | None = None
    mask_growth: _UInt32 | None = None
    retries: _UInt32 | None = None

    @_model_validator(mode="before")
    @classmethod
    def _from_switch(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class Settings(_Model):
    """Generation settings. What is absent takes the model's default.

    :ivar model: name of a served model; empty: the server's default.
    :ivar steps: denoising steps.
    :ivar guidance_scale: classifier-free guidance, 1 (off) to 30.
    :ivar width: pixels; with `height` one of the sizes that the model lists.
    :ivar seed: the same seed, settings and model give the same pictures. Absent: chosen by the server.
    :ivar preview_interval: send a rough picture of every frame each so many steps; 0 for none.
    :ivar identity_adapter: of the model, which makes use of references; empty: its default; ``"none"``: they are left
        aside.
    :ivar loras: LoRA of the model by name, with how much of each is added, -2 to 2.
    :ivar redenoising: a second pass for the looks of characters with references; absent: none.
    :ivar freeu: other scales of what meets in the UNet's up blocks; absent: none.
    """

    model: str = ""
    steps: _Positive | None = None
    guidance_scale: Annotated[float, Strict(), Field(ge=1, le=30, allow_inf_nan=False)] | None = None
    solver: Solver | None = None
    width: _Positive | None = None
    height: _Positive | None = None
    seed: _Seed | None = None
    consistency: Consistency = Consistency()
    preview_interval: _UInt32 = 0
    identity_adapter: str = ""
    loras: dict[_Text, Annotated[float, Strict(), Field(ge=-2, le=2, allow_inf_nan=False)]] = {}
    redenoising: Redenoising | None = None
    freeu: FreeU | None = None


def _check_cast(frame: Frame, info: ValidationInfo) -> Frame:
    cast = info.data.get("characters")
    if cast is None:  # the cast itself is wrong, and reported as such
        return frame
    # Frames that extend a story may name the characters of that story, too.
    cast = [*cast, *(info.context or {}).get("cast", ())]
    written: list[tuple[tuple[str | int, ...], str]] = [(("prompt",), name) for name in placeholders(frame.prompt)]
    listed = [(("characters", index), name) for index, name in enumerate(frame.characters)]
    errors = [
        InitErrorDetails(type=_unknown_character(name, cast), loc=loc, input=name)
        for loc, name in dict.fromkeys([*written, *listed])
        if name not in cast
    ]
    if errors:
        raise ValidationError.from_exception_data("Frame", errors)
    return frame


def _unknown_character(name: str, cast: Iterable[str]) -> PydanticCustomError:
    if not name:
        return PydanticCustomError("brace", "a { must be followed by a character's name and }; write {{ for a brace")
    return PydanticCustomError(
        "unknown_character", "{problem}", {"problem": f'no character is named "{name}"{did_you_mean(name, cast)}'}
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``'; did you mean "x"?'``, or the known words where none is close to `word`."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1) or [known for known in words if word and known.startswith(word)]
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(words)}" if words else ""


class Story(_Model):
    """A cast and an ordered list of frames; one picture is made for each frame.

    Strings do for characters and frames: ``Story(characters={"mia": "a young woman"}, frames=["{mia} is
    walking"])``. Building one that makes no sense raises `pydantic.ValidationError` with all its faults.

    :ivar title: for people; never used in generation.
    :ivar style: put in front of every frame's prompt, such as ``"a watercolour painting of"``.
    :ivar characters: the cast by name, in order.
    :ivar negative_prompt: what the pictures should not show.
    """

    title: Annotated[str, Field(max_length=200)] = ""
    style: str = ""
    characters: dict[Annotated[str, AfterValidator(_check_name)], Character] = {}
    frames: Annotated[tuple[Annotated[Frame, AfterValidator(_check_cast)], ...], AfterValidator(_check_any)]
    negative_prompt: str = ""
    settings: Settings = Settings()

    if TYPE_CHECKING:  # What may be given is more than what is there afterwards.

        def __init__(
            self,
            *,
            frames: Sequence[Frame | str],
            characters: Mapping[str, Character | str] = ...,
            title: str = ...,
            style: str = ...,
            negative_prompt: str = ...,
            settings: Settings = ...,
        ) -> None: ...

    @property
    def captions(self) -> tuple[str, ...]:
        """Each frame's prompt as people read it, with names for ``{name}``."""
        return tuple(caption(frame.prompt) for frame in self.frames)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Story:
        """Reads a story file (YAML or JSON, UTF-8).

        :raises StoryFileError: with every problem, and the line it is in.
        """
        from storyloom._story_file import load_story_file

        return load_story_file(path).story

    def with_settings(self, **changes: Any) -> Story:
        """Returns the same story with other settings, such as ``steps=50`` or ``consistency={"enabled": False}``.

        :raises pydantic.ValidationError: when a value is out of range.
        """
        settings = self.settings.model_dump(exclude_unset=True)
        for name in ("consistency", "freeu"):
            own, new = settings.get(name) or {}, changes.get(name)
            if isinstance(new, Mapping):
                changes[name] = {**own, **new}
                if isinstance(new.get("rounds"), Mapping):
                    changes[name]["rounds"] = {**(own.get("rounds") or {}), **new["rounds"]}
        settings |= changes
        return self.model_validate(self.model_dump(exclude_unset=True) | {"settings": settings})
