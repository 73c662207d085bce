"""Where in a request stands what is wrong with the story that it leads to. Pure.

A story that goes on from another is checked as a whole, by the paths of a new story. Its client sent a part of it,
under other names; what is wrong with the rest is told of the field that names the story it is from.
"""

import re

from storyloom_server.violations import Violation

# A field of the story; what stands outside, such as the request's id, has the same path in every request.
_FIELD = re.compile(r"story\.(?P<list>frames|characters)?(?:\[(?P<index>\d+)\])?(?P<rest>.*)")


def in_extension(violation: Violation, frames: int, characters: int) -> Violation:
    """The violation as ``ExtendStory`` has it, of a story that has so many frames and characters already."""
    field = _FIELD.fullmatch(violation.path)
    if field is None:
        return violation
    name, already = {"frames": ("frames", frames), "characters": ("new_characters", characters)}.get(
        field["list"] or "", ("", 0)
    )
    if name and field["index"] is None:
        return Violation(name, violation.message)
    if name and int(field["index"]) >= already:
        return Violation(f"{name}[{int(field['index']) - already}]{field['rest']}", violation.message)
    return _of_parent(violation)


def in_redone_frame(violation: Violation, frame: int, *, sent: bool) -> Violation:
    """The violation as ``RedoFrame`` has it, of this frame, which the request has ``sent`` or left as it was."""
    field = _FIELD.fullmatch(violation.path)
    if field is None:
        return violation
    if sent and field["list"] == "frames" and field["index"] == str(frame):
        return Violation(f"frame{field['rest']}", violation.message)
    return _of_parent(violation)


def _of_parent(violation: Violation) -> Violation:
    return Violation("story_id", f"{violation.path.removeprefix('story.')} of that story: {violation.message}")
