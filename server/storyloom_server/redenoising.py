"""Re-denoising as a story asks for it: checked, complete, and in steps and regions. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storyloom.v1 import story_pb2 as pb
from storyloom_model.jobs import Redenoising, Region
from storyloom_model.manifest import NO_ADAPTER
from storyloom_model.prompts import ComposedPrompt
from storyloom_model.redenoising.plan import MAX_DILATION
from storyloom_server.catalog import ServedModel
from storyloom_server.identities import WantedIdentity
from storyloom_server.texts import check_region_prompt
from storyloom_server.violations import Findings

MAX_RETRIES = 4
_PATH = "story.settings.redenoising"
_START = 0.2
# The paper's, in pictures of 1024 pixels.
_SIDE, _MARGIN, _GROWTH = 1024, 10, 50


@dataclass(frozen=True, slots=True)
class ResolvedRedenoising:
    """Without gaps: the start as a share of the steps, margin and growth in pixels."""

    start: float
    margin: int
    growth: int
    retries: int

    def to_wire(self) -> pb.Redenoising:
        """The form in which a client gets it back."""
        return pb.Redenoising(
            enabled=True,
            start=self.start,
            mask_margin=self.margin,
            mask_growth=self.growth,
            retries=self.retries,
        )

    def plan(self, steps: int, prompts: Mapping[str, ComposedPrompt]) -> Redenoising:
        """What the engine does: every character with references has a region, whose prompt shows it alone."""
        regions = (Region(name, prompt) for name, prompt in prompts.items())
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
    if wish.retries > MAX_RETRIES:
        found.add(f"{_PATH}.retries", f"{wish.retries} further tries; use 0 to {MAX_RETRIES}")
    scale = min(width, height) / _SIDE
    return ResolvedRedenoising(
        start=start,
        margin=_pixels(found, wish, "mask_margin", round(_MARGIN * scale)),
        growth=_pixels(found, wish, "mask_growth", round(_GROWTH * scale)),
        retries=wish.retries,
    )


def region_prompts(
    found: Findings, story: pb.Story, cast: Mapping[str, str], wanted: Sequence[WantedIdentity], model: ServedModel
) -> dict[str, ComposedPrompt]:
    """What the second pass makes of each character with references, as asked or of its description; notes what is bad.

    Args:
        cast: descriptions by name.
        wanted: characters with references of which the story makes use.
    """
    names, made = {each.name for each in wanted}, {}
    for index, character in enumerate(story.characters):
        path = f"story.characters[{index}].identity.region_prompt"
        text = character.identity.region_prompt or f"{{{character.name}}}"
        if character.name in names and not found.has(f"story.characters[{index}]"):
            who = (character.name, cast[character.name])
            prompt = check_region_prompt(found, path, text, story.style, who, model)
            if prompt is not None:
                made[character.name] = prompt
    return made


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
