"""What a method needs to see in a character's references, told before a story begins. Loads without torch."""

from __future__ import annotations

from collections.abc import Collection

from storyloom_model.identity.features import IdentityFeatures

_WHOLE_CHARACTER = ("ip-adapter", "ip-adapter-plus")
"""Methods that read the character crop, and the face crop only where the face alone is to be kept."""


def what_is_missing(method: str, keep: Collection[str], features: IdentityFeatures) -> str | None:
    """Why a method can do nothing with features, for the owner of the pictures; None where it can.

    Args:
        method: of the identity adapter.
        keep: see ``CharacterIdentity``.
        features: of the character.
    """
    face, looks, ways_out = _needs(method, frozenset(keep))
    persons = [one for one in features.references if one.role == "character"]
    if face and all(one.face is None for one in persons):
        shown = "garments alone" if not persons else "no face"
        return f"the references show {shown}, and the face is needed; add a picture that shows it{ways_out}"
    if looks and all(one.character_states is None for one in features.references):
        return (
            f"the references show no more than the face; add one of the whole character, or one with a mask{ways_out}"
        )
    return None


def _needs(method: str, keep: frozenset[str]) -> tuple[bool, bool, str]:
    """Whether the face is needed, whether the character crop is, and what else could be asked for."""
    if method == "storymaker":
        face, looks = not keep or "face" in keep, not keep or bool(keep - {"face"})
        other = ", or keep only hair, clothes or body" if face else ", or keep only the face"
        return face, looks, other
    if method in _WHOLE_CHARACTER:
        return keep == {"face"}, keep != {"face"}, ""
    return True, False, ""
