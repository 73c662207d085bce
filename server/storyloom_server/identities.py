"""What a story asks of its characters' references, checked against what its model can. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storyloom.v1 import story_pb2 as pb
from storyloom_model.identity.features import IdentityFeatures
from storyloom_model.identity.needs import what_is_missing
from storyloom_model.jobs import Identity
from storyloom_model.manifest import NO_ADAPTER
from storyloom_server.catalog import PARTS, ModelCatalog, ServedModel
from storyloom_server.reference_pictures import MAX_REFERENCES
from storyloom_server.store import StoryFeatures
from storyloom_server.violations import Findings

_PART_NAMES: dict[int, str] = {number: name for name, number in PARTS.items()}
_MAX_SCALE = 2.0
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class WantedIdentity:
    """What a story wants of one character's references; its features come from elsewhere. See ``Identity``.

    ``method`` is the identity adapter's.
    """

    name: str
    method: str
    scale: float
    keep: tuple[str, ...]
    blend_weight: float | None

    def what_is_missing(self, features: bytes) -> str | None:
        """Why nothing can be made of these features, of this character or of the one that is mixed in."""
        return what_is_missing(self.method, self.keep, IdentityFeatures.from_bytes(features))

    def with_features(self, features: Mapping[tuple[str, bool], bytes]) -> Identity:
        """The identity, from features by the character's name and whether they are mixed in.

        Raises:
            KeyError: they lack some.
        """
        return Identity(
            character=self.name,
            features=features[self.name, False],
            scale=self.scale,
            keep=self.keep,
            blend=b"" if self.blend_weight is None else features[self.name, True],
            blend_weight=self.blend_weight or 0.0,
        )


def by_name(features: Sequence[StoryFeatures]) -> dict[tuple[str, bool], bytes]:
    """Features as ``with_features`` takes them."""
    return {(each.name, each.blended): each.features.data for each in features}


def check_identities(
    found: Findings, story: pb.Story, model: ServedModel, catalog: ModelCatalog, adapter: str
) -> list[WantedIdentity]:
    """What the story wants of the characters that have references; the result counts only when nothing was found.

    Args:
        adapter: the identity adapter in force; "none" leaves references aside.
    """
    with_references = {index: each for index, each in enumerate(story.characters) if each.references}
    for index, character in enumerate(story.characters):
        if character.HasField("identity") and not character.references:
            found.add(f"story.characters[{index}].identity", "is for characters with references; add one")
    if adapter == NO_ADAPTER:
        if story.settings.identity_adapter != NO_ADAPTER and not found.has("story.settings.identity_adapter"):
            for index in with_references:
                found.add(f"story.characters[{index}].references", _no_adapter(model, catalog))
        return []
    return [
        _wanted(found, f"story.characters[{index}]", each, model, adapter) for index, each in with_references.items()
    ]


def _wanted(found: Findings, path: str, character: pb.Character, model: ServedModel, adapter: str) -> WantedIdentity:
    if len(character.references) > MAX_REFERENCES:
        found.add(f"{path}.references", f"{len(character.references)} pictures; give at most {MAX_REFERENCES}")
    identity = character.identity
    scale = identity.scale if identity.HasField("scale") else 1.0
    if not (math.isfinite(scale) and 0 <= scale <= _MAX_SCALE):
        found.add(f"{path}.identity.scale", f"{scale:g} is no strength; use 0 (none) to {_MAX_SCALE:g}")
    return WantedIdentity(
        name=character.name,
        method=model.manifest.identity_adapters[adapter].method,
        scale=scale,
        keep=_keep(found, f"{path}.identity.keep", identity.keep, model, adapter),
        blend_weight=_blend_weight(found, f"{path}.identity.blend", identity),
    )


def _keep(found: Findings, path: str, asked: Sequence[int], model: ServedModel, adapter: str) -> tuple[str, ...]:
    known = model.identity_adapters.get(adapter, ())
    keep = []
    for index, number in enumerate(asked):
        part = _PART_NAMES.get(number)
        if part is None or part not in known:
            what = f"part {int(number)} is unknown" if part is None else f"{adapter} does not take over the {part}"
            found.add(f"{path}[{index}]", f"{what}; use {', '.join(known)}, or leave it out for all of them")
        elif part not in keep:
            keep.append(part)
    return tuple(keep)


def _blend_weight(found: Findings, path: str, identity: pb.IdentityOptions) -> float | None:
    if not identity.HasField("blend"):
        return None
    weight = identity.blend.weight if identity.blend.HasField("weight") else _HALF
    if not (math.isfinite(weight) and 0 <= weight <= 1):
        found.add(f"{path}.weight", f"{weight:g} is no weight; use 0 (this character) to 1 (the other one)")
    return weight


def _no_adapter(model: ServedModel, catalog: ModelCatalog) -> str:
    aside = f"or set settings.identity_adapter to {NO_ADAPTER} to leave them aside"
    if model.identity_adapters:
        return (
            f"{model.name} makes use of references only with an identity adapter; set settings.identity_adapter to "
            f"{' or '.join(model.identity_adapters)}, {aside}"
        )
    others = [other.name for other in catalog.models if other.identity_adapters]
    use = f"use {' or '.join(others)}" if others else "no model here does"
    return f"{model.name} takes no references; {use}, {aside}"
