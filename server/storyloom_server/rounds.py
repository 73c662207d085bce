"""Rounds as a story asks for them: checked and complete. Pure."""

import math
import struct

from storyloom.v1 import story_pb2 as pb
from storyloom_model.methods.rounds import ADAPTERS, MAX_ROUNDS, MAX_SCALE, ROUNDS, Rounds
from storyloom_server.catalog import ServedModel
from storyloom_server.violations import Findings

_PATH = "story.settings.consistency.rounds"
_ADAPTER_PATH = "story.settings.identity_adapter"
# The authors' code: one round without references and ten with.
_COUNT, _FIRST_SCALE, _LAST_SCALE = 11, 0.3, 0.5


def resolve_rounds(found: Findings, asked: pb.Settings, method: str) -> Rounds | None:
    """Fills in defaults and notes every bad value; None where the story is made once."""
    wish = asked.consistency.rounds
    if method != ROUNDS:
        if asked.consistency.HasField("rounds"):
            found.add(_PATH, f"are of the story method {ROUNDS}; set consistency.method to it, or leave them out")
        return None
    count = wish.count if wish.HasField("count") else _COUNT
    if not 1 <= count <= MAX_ROUNDS:
        found.add(f"{_PATH}.count", f"{count} rounds; ask for 1 to {MAX_ROUNDS}")
    first = _scale(found, wish, "first_scale", _FIRST_SCALE)
    return Rounds(count, first, _scale(found, wish, "last_scale", _LAST_SCALE))


def rounds_to_wire(rounds: Rounds) -> pb.Rounds:
    """The form in which a client gets them back."""
    return pb.Rounds(count=rounds.count, first_scale=rounds.first_scale, last_scale=rounds.last_scale)


def adapter_of_rounds(found: Findings, asked: str, model: ServedModel) -> str:
    """The identity adapter that sees the pictures of rounds: the one asked for, or the first that can."""
    able = model.round_adapters
    if not able or (asked and asked not in able):
        if able:
            found.add(_ADAPTER_PATH, f"{ROUNDS} needs one that takes whole pictures; use {' or '.join(able)}")
        return model.default_identity_adapter
    return asked or able[0]


def why_no_rounds(model: ServedModel) -> str:
    """What a model lacks that cannot make stories in rounds, for people."""
    others = ", ".join(model.methods)
    if model.manifest.encoders is None:
        return f"{ROUNDS} needs image encoders, and {model.name} has none; use one of {others}"
    return (
        f"{ROUNDS} needs an identity adapter of the form {' or '.join(ADAPTERS)}, and {model.name} has none; add one "
        f"(storyloom models add-adapter), or use one of {others}"
    )


def check_alone(found: Findings) -> None:
    """A story made in rounds takes no second pass."""
    found.add("story.settings.redenoising", f"does not go with {ROUNDS}; leave it out, or use another story method")


def _scale(found: Findings, wish: pb.Rounds, name: str, default: float) -> float:
    scale: float = getattr(wish, name) if wish.HasField(name) else default
    if not (math.isfinite(scale) and 0 <= scale <= MAX_SCALE):
        found.add(f"{_PATH}.{name}", f"{scale:g} is no scale; use 0 (none) to {MAX_SCALE:g}")
        return default
    # As the wire has it: a story that is taken up again is planned from what was echoed.
    (exact,) = struct.unpack("<f", struct.pack("<f", scale))
    return float(exact)
