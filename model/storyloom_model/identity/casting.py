"""The identity streams of a story: who is in which row, and what the adapter makes of them, once for all steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from storyloom_model.identity.adapter import CharacterIdentity, IdentityAdapter, Stream
from storyloom_model.identity.features import FeaturesError, IdentityFeatures
from storyloom_model.identity.streams import IdentityStreams, pack_streams
from storyloom_model.jobs import Identity, StoryJob


def story_streams(job: StoryJob, adapter: IdentityAdapter) -> IdentityStreams | None:
    """The streams of a story's rows: the negative prompt's first if it is guided; frames, then anchors.

    A row has those of its own characters, in the order of ``job.identities``. Rows with the same characters share what
    is computed.

    Returns:
        None when the adapter makes nothing of the characters.

    Raises:
        FeaturesError: features are damaged, of other encoders, or lack what the adapter needs.
    """
    streams, kind_of_row = row_streams(job, adapter)
    if not any(streams):
        return None
    packed = pack_streams(streams, job.characters, scale=adapter.scale).project(adapter.layers)
    return packed.rows(torch.tensor(kind_of_row, device=packed.ends.device))


def row_streams(job: StoryJob, adapter: IdentityAdapter) -> tuple[list[list[Stream]], list[int]]:
    """The streams of each kind of row, and the kind of each row, in the order of ``story_streams``.

    Raises:
        FeaturesError: see ``story_streams``.
    """
    identities = story_identities(job, adapter)
    prompts = [*(frame.prompt for frame in job.frames), *(anchor.prompt for anchor in job.anchors)]
    casts = [tuple(name for name in identities if name in prompt.spans) for prompt in prompts]
    branches = (True, False) if job.guided else (False,)
    rows = [(negative, cast) for negative in branches for cast in casts]
    kinds = list(dict.fromkeys(rows))
    streams = [_streams(adapter, negative, {name: identities[name] for name in cast}) for negative, cast in kinds]
    return streams, [kinds.index(row) for row in rows]


def story_identities(job: StoryJob, adapter: IdentityAdapter) -> dict[str, CharacterIdentity]:
    """What a job says of its characters, by name, read and fit for an adapter.

    Raises:
        FeaturesError: features are damaged, or of other encoders than the adapter's.
    """
    identities = {one.character: character_identity(one) for one in job.identities}
    _check_encoders(identities, adapter)
    return identities


def character_identity(identity: Identity) -> CharacterIdentity:
    """What a job says of a character, read.

    Raises:
        FeaturesError: the features are damaged.
    """
    return CharacterIdentity(
        IdentityFeatures.from_bytes(identity.features),
        identity.scale,
        frozenset(identity.keep),
        IdentityFeatures.from_bytes(identity.blend) if identity.blend else None,
        identity.blend_weight,
    )


def _streams(adapter: IdentityAdapter, negative: bool, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
    if not cast:
        return []
    return adapter.maker.negative_streams(cast) if negative else adapter.maker.streams(cast)


def _check_encoders(identities: Mapping[str, CharacterIdentity], adapter: IdentityAdapter) -> None:
    for name, identity in identities.items():
        found = {one.networks for one in (identity.features, identity.blend) if one is not None}
        if adapter.encoders is not None and found != {adapter.encoders}:
            raise FeaturesError(
                f"the features of {name} are of other encoders than identity adapter {adapter.name} was made for; "
                "encode the references again"
            )
