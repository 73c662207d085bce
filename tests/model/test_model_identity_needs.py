"""Features with too little in them are found out before a story begins, by the rules that its method has."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from storyloom_model.identity.adapter import CharacterIdentity
from storyloom_model.identity.features import FeaturesError, IdentityFeatures, ReferenceFeatures
from storyloom_model.identity.needs import what_is_missing
from storyloom_model.identity.perceiver import PerceiverSizes, Resampler
from storyloom_model.identity.published.makers import ReferenceTokens
from storyloom_model.identity.storymaker import StoryMakerResampler, StoryMakerSizes, StoryMakerStreams
from storyloom_model.identity.storynizor import InjectorSizes, StorynizorInjector
from storyloom_model.manifest import KEEPS

WIDTH, STATES = 64, np.ones((3, 8), np.float32)
FACE: dict[str, Any] = {"face": np.ones(16, np.float32), "face_states": STATES}
LOOKS: dict[str, Any] = {"character_states": STATES}
MAKERS = {
    "storynizor": StorynizorInjector(InjectorSizes(state_dim=8, dim=WIDTH, face_dim=16, depth=1, heads=1)),
    "storymaker": StoryMakerStreams(
        StoryMakerResampler(StoryMakerSizes(WIDTH, 16, 8, 2, 2, WIDTH, 1, places=1, depth=1))
    ),
    "ip-adapter-plus": ReferenceTokens(Resampler(PerceiverSizes(WIDTH, 8, WIDTH, 1, 1), 2), ("character_states",)),
    "ip-adapter-plus-face": ReferenceTokens(Resampler(PerceiverSizes(WIDTH, 8, WIDTH, 1, 1), 2), ("face_states",)),
}
CASTS = {
    "person": [ReferenceFeatures(**FACE, **LOOKS)],
    "face": [ReferenceFeatures(**FACE)],
    "nobody": [ReferenceFeatures(**LOOKS)],
    "garments": [ReferenceFeatures("clothes", **LOOKS)],
    "person and garments": [ReferenceFeatures(**FACE, **LOOKS), ReferenceFeatures("clothes", **LOOKS)],
}
KEPT = [keep for size in range(3) for keep in combinations(KEEPS, size)]


@pytest.mark.parametrize("method", MAKERS)
@pytest.mark.parametrize("shown", CASTS)
@torch.no_grad()
def test_what_is_missing_is_what_the_method_refuses(method: str, shown: str) -> None:
    features = IdentityFeatures("any", tuple(CASTS[shown]))
    faces_only = method in ("storynizor", "ip-adapter-plus-face")
    for keep in KEPT:
        if faces_only and keep and "face" not in keep:
            continue  # Refused for what it keeps, whatever the pictures show.
        missing = what_is_missing(method, keep, features)
        cast = {"mia": CharacterIdentity(features, keep=frozenset(keep))}
        if missing is None:
            assert MAKERS[method].streams(cast)
        else:
            with pytest.raises(FeaturesError, match="no reference of"):
                MAKERS[method].streams(cast)


def test_messages_say_what_to_add() -> None:
    garments, face = (IdentityFeatures("any", tuple(CASTS[name])) for name in ("garments", "face"))
    told = what_is_missing("storymaker", (), garments)
    assert told is not None
    assert "garments alone" in told
    assert told.endswith("add a picture that shows it, or keep only hair, clothes or body")
    told = what_is_missing("storymaker", ("clothes",), face)
    assert told is not None
    assert told.endswith("one with a mask, or keep only the face")
