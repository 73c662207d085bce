"""Checks the texts of a story: the cast, the frames, and the prompts that they make together."""

import re
from collections.abc import Mapping

from storyloom.v1 import story_pb2 as pb
from storyloom_model import prompts
from storyloom_server.catalog import ServedModel
from storyloom_server.violations import Findings

# Both are far above what any text encoder reads; they keep the cost of a hostile message small.
MAX_TEXT = 2000
_MAX_COMPOSED = 4 * MAX_TEXT
_MAX_QUOTE = 200
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
# C0 and C1 controls and delete; tab and line ends are ordinary white space.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def check_text(found: Findings, path: str, text: str, *, limit: int = MAX_TEXT, required: bool = False) -> None:
    """Notes text that is missing, too long or has control characters."""
    if required and not text.strip():
        found.add(path, "is empty; write something")
    elif len(text) > limit:
        found.add(path, f"has {len(text)} characters; {limit} are allowed")
    elif _CONTROL.search(text):
        found.add(path, "has control characters; remove them")


def check_name(found: Findings, path: str, name: str) -> None:
    """Notes a name that no character can have."""
    if not _NAME.fullmatch(name):
        found.add(path, "is not a character name; use 1 to 32 letters, digits, - or _, beginning with a letter")


def check_cast(found: Findings, story: pb.Story, max_characters: int) -> dict[str, str]:
    """Checks the characters and returns name -> description, "" for those that are bad in themselves.

    Bad ones are kept so that frames which name them are not blamed too.
    """
    if len(story.characters) > max_characters:
        found.add("story.characters", f"{len(story.characters)} characters; the model takes {max_characters} at most")
    cast: dict[str, str] = {}
    for index, character in enumerate(story.characters[:max_characters]):
        path = f"story.characters[{index}]"
        check_text(found, f"{path}.description", character.description, required=True)
        described = not found.has(path)
        check_name(found, f"{path}.name", character.name)
        if character.name in cast and not found.has(f"{path}.name"):
            found.add(f"{path}.name", f"{character.name} is the name of an earlier character; choose another")
        cast.setdefault(character.name, character.description if described else "")
    return cast


def check_frames(
    found: Findings, story: pb.Story, cast: Mapping[str, str], model: ServedModel
) -> list[prompts.ComposedPrompt]:
    """Checks the frames and composes their prompts; the result counts only when nothing was found."""
    limit = model.manifest.limits.max_frames
    if not story.frames:
        found.add("story.frames", "the story is empty; add at least one frame")
    if len(story.frames) > limit:
        found.add("story.frames", f"{len(story.frames)} frames; {model.name} takes {limit} at most")
    composed = []
    for index, frame in enumerate(story.frames[:limit]):
        prompt = _check_frame(found, f"story.frames[{index}]", frame, story, cast, model)
        if prompt is not None:
            composed.append(prompt)
    return composed


def check_negative_prompt(found: Findings, text: str, model: ServedModel) -> None:
    """Checks the negative prompt as such and against the length of the model's text encoder."""
    path = "story.negative_prompt"
    check_text(found, path, text)
    if not found.has(path):
        _check_length(found, path, text, model)


def check_region_prompt(
    found: Findings, path: str, text: str, style: str, who: tuple[str, str], model: ServedModel
) -> prompts.ComposedPrompt | None:
    """Checks what is to be made of a character alone, and composes it; None if it is bad.

    Args:
        text: as asked; without the character's name its description is put in front.
        style: of the story.
        who: name and description.
    """
    name, description = who
    check_text(found, path, text)
    if found.has(path) or found.has("story.style"):
        return None
    composed = prompts.compose(style, text, {name: description}, [name])
    if isinstance(composed, prompts.PromptError):
        found.add(path, f"{composed.message}; a region prompt shows {name} alone")
        return None
    _check_length(found, path, composed, model)
    return composed


def _check_frame(
    found: Findings, path: str, frame: pb.Frame, story: pb.Story, cast: Mapping[str, str], model: ServedModel
) -> prompts.ComposedPrompt | None:
    check_text(found, f"{path}.prompt", frame.prompt, required=True)
    _check_listed(found, f"{path}.characters", frame, cast, model.manifest.limits.max_characters)
    if found.has(f"{path}.") or len(story.characters) > model.manifest.limits.max_characters:
        return None
    style = "" if found.has("story.style") else story.style
    composed = prompts.compose(style, frame.prompt, cast, list(frame.characters))
    if isinstance(composed, prompts.PromptError):
        found.add(f"{path}.prompt", f"{composed.message}; {_known(cast)}")
        return None
    if len(composed.text) > _MAX_COMPOSED:
        found.add(f"{path}.prompt", f"has {len(composed.text)} characters with descriptions filled in; shorten it")
        return None
    if not (found.has("story.characters") or found.has("story.style")):
        _check_length(found, f"{path}.prompt", composed, model)
    return composed


def _check_listed(found: Findings, path: str, frame: pb.Frame, cast: Mapping[str, str], max_characters: int) -> None:
    if len(frame.characters) > max_characters:
        found.add(path, f"names {len(frame.characters)} characters; {max_characters} are allowed")
        return
    for index, name in enumerate(frame.characters):
        if name not in cast:
            found.add(f"{path}[{index}]", f"names no character of this story; {_known(cast)}")


def _check_length(found: Findings, path: str, prompt: prompts.ComposedPrompt | str, model: ServedModel) -> None:
    limit = model.manifest.limits.max_prompt_tokens
    cut = prompts.check_prompt(model.tokenizer, prompt, limit)
    if cut is not None:
        found.add(
            path,
            f"is too long, style and descriptions included: {model.name} reads {limit} tokens and "
            f'would leave out "{_short(cut)}"; shorten it',
        )


def _short(text: str) -> str:
    return text if len(text) <= _MAX_QUOTE else f"{text[: _MAX_QUOTE - 1]}…"


def _known(cast: Mapping[str, str]) -> str:
    names = ", ".join(name for name in cast if _NAME.fullmatch(name))
    return f"it has {names}" if names else "it has no characters"
