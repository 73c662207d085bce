"""Re-denoising as a story asks for it: checked, complete, and in steps and regions. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storyloom.v1 import story_pb2 as pb
from storyloom_model.jobs import Redenoising, Region
from storyloom_model.manifest import NO_ADAPTER
from storyloom_model.prompts import ComposedPrompt, compose
from storyloom_model.redenoising.plan import MAX_DILATION
from storyloom_server.identities import WantedIdentity
from storyloom_server.violations import Findings

_PATH = "story.settings.redenoising"
_START = 0.2
# The paper's, in pictures of 1024 pixels.
_SIDE, _MARGIN, _GROWTH = 1024, 10, 50


@dataclass(frozen=True, slots=True)
class ResolvedRedenoising:
    """Without gaps: the start as a share of the steps, the rest in pixels."""

    start: float
    margin: int
    growth: int

    def to_wire(self) -> pb.Redenoising:
        """The form in which a client gets it back."""
        return pb.Redenoising(enabled=True, start=self.start, mask_margin=self.margin, mask_growth=self.growth)

    def plan(self, steps: int, style: str, cast: Mapping[str, str], wanted: Sequence[WantedIdentity]) -> Redenoising:
        """What the engine does: every character with references has a region, whose prompt shows it alone."""
        prompts = {each.name: compose(style, f"{{{each.name}}}", cast, []) for each in wanted}
        regions = (Region(name, prompt) for name, prompt in prompts.items() if isinstance(prompt, ComposedPrompt))
        start = min(round(self.start * steps), steps - 1)
        return Redenoising(start=start, regions=tuple(regions), margin=self.margin, growth=self.growth)


def resolve_redenoising(found: Findings, asked: pb.Settings, width: int, height: int) -> ResolvedRedenoising | None:
    """Fills in defaults and notes every bad value; None where the story goes without."""
    wish = asked.redenoising
    if not asked.HasField("redenoising") or (wish.HasField("enabled") and not wish.enabled):
        return None
    start = wish.start if wish.HasField("start") else _START
    if not (math.isfinite(start) and 0 <= start < 1):
        found.add(f"{_PATH}.start", f"{start:g} is no share of the steps; use 0 to below 1, such as {_START:g}")
    scale = min(width, height) / _SIDE
    return ResolvedRedenoising(
        start=start,
        margin=_pixels(found, wish, "mask_margin", round(_MARGIN * scale)),
        growth=_pixels(found, wish, "mask_growth", round(_GROWTH * scale)),
    )


def check_somebody(found: Findings, wanted: Sequence[WantedIdentity], adapter: str) -> None:
    """A story with re-denoising needs somebody whose looks are known.

    Args:
        wanted: characters with references of which the story makes use.
        adapter: the identity adapter in force.
    """
    if wanted or found.has(_PATH):
        return
    if adapter == NO_ADAPTER:
        found.add(_PATH, "needs an identity adapter; name one in settings.identity_adapter, or leave this out")
    else:
        found.add(
            _PATH,
            "gives characters with references their looks, and none has any; add some, use a kept character that has "
            "(DiscoverCharacter makes one of a description), or leave this out",
        )


def _pixels(found: Findings, wish: pb.Redenoising, name: str, default: int) -> int:
    pixels: int = getattr(wish, name) if wish.HasField(name) else default
    if pixels > MAX_DILATION:
        found.add(f"{_PATH}.{name}", f"{pixels} pixels; use 0 to {MAX_DILATION}")
    return pixels
