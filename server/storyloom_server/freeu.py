"""FreeU and feature injection as a story asks for them: checked and complete. Pure."""

import math

from storyloom.v1 import story_pb2 as pb
from storyloom_model.jobs import FreeU
from storyloom_model.manifest import MAX_FREEU, Manifest
from storyloom_model.methods.names import INJECTS
from storyloom_server.violations import Findings

_PATH = "story.settings"
_NUMBERS = ("b1", "b2", "s1", "s2")


def resolve_freeu(found: Findings, asked: pb.Settings, manifest: Manifest) -> FreeU | None:
    """Fills in the model's numbers and notes every bad one; None where the story goes without."""
    wish = asked.freeu
    if not asked.HasField("freeu") or (wish.HasField("enabled") and not wish.enabled):
        return None
    numbers = manifest.freeu.model_dump() | {name: getattr(wish, name) for name in _NUMBERS if wish.HasField(name)}
    for name, value in numbers.items():
        if not (math.isfinite(value) and 0 <= value <= MAX_FREEU):
            found.add(f"{_PATH}.freeu.{name}", f"{value:g} is no scale; use 0 to {MAX_FREEU:g}, 1 for no change")
    # As the wire holds them, so that the story planned again from its record is the same.
    wire = pb.FreeU(**numbers)
    return FreeU(wire.b1, wire.b2, wire.s1, wire.s2)


def freeu_to_wire(freeu: FreeU) -> pb.FreeU:
    """The form in which a client gets it back."""
    return pb.FreeU(enabled=True, b1=freeu.b1, b2=freeu.b2, s1=freeu.s1, s2=freeu.s2)


def resolve_injection(found: Findings, asked: pb.Settings, method: str) -> bool:
    """Whether the story is made twice; notes it where its method has no such thing."""
    wanted = asked.consistency.feature_injection
    if wanted and method not in INJECTS:
        found.add(
            f"{_PATH}.consistency.feature_injection",
            f"is of the story method {', '.join(INJECTS)}, and this story's is {method}; name that, or leave this out",
        )
    return wanted
