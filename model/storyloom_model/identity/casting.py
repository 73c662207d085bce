"""The identity streams of a story: who is in which row, and what the adapter makes of them, once for all steps.

Of adapters by parts also which parts have maps of their own, and whose these are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from storyloom_model.encoder import TextEncoder
from storyloom_model.identity.adapter import CharacterIdentity, IdentityAdapter, Stream
from storyloom_model.identity.character_adapter import placed
from storyloom_model.identity.features import FeaturesError, IdentityFeatures
from storyloom_model.identity.global_references import global_stream
from storyloom_model.identity.parts import PARTS, Part, part_spans
from storyloom_model.identity.streams import IdentityStreams, pack_streams
from storyloom_model.jobs import Identity, StoryJob
from storyloom_model.prompts import ComposedPrompt
from storyloom_model.story_text import prompts_of


def story_streams(job: StoryJob, adapter: IdentityAdapter) -> IdentityStreams | None:
    """The streams of a story's rows: the negative prompt's first if it is guided; frames, then anchors.

    A row has those of its own characters, in the order of ``job.identities``, then that of all pictures of the round
    before, if the job has them. Rows with the same characters share what
    is computed.

    Returns:
        None when the adapter makes nothing of the characters.

    Raises:
        FeaturesError: features are damaged, of other encoders, or lack what the adapter needs.
    """
    streams, kind_of_row = row_streams(job, adapter)
    if not any(streams):
        return None
    places: list[str | Part] = [*job.characters, *story_parts(job, adapter)]
    packed = pack_streams(streams, places, scale=adapter.scale).project(adapter.layers)
    return packed.rows(torch.tensor(kind_of_row, device=packed.ends.device))


def row_streams(job: StoryJob, adapter: IdentityAdapter) -> tuple[list[list[Stream]], list[int]]:
    """The streams of each kind of row, and the kind of each row, in the order of ``story_streams``.

    Raises:
        FeaturesError: see ``story_streams``.
    """
    identities = story_identities(job, adapter)
    prompts = prompts_of(job)
    casts = [tuple(name for name in identities if name in prompt.spans) for prompt in prompts]
    said = [_said(prompt, cast, adapter) for prompt, cast in zip(prompts, casts, strict=True)]
    branches = (True, False) if job.guided else (False,)
    rows = [(negative, *of_prompt) for negative in branches for of_prompt in zip(casts, said, strict=True)]
    kinds = list(dict.fromkeys(rows))
    streams = [
        placed(_streams(adapter, negative, {name: identities[name] for name in cast}), parts)
        for negative, cast, parts in kinds
    ]
    if job.global_references is not None:
        seen = {
            negative: global_stream(job.global_references, adapter, negative=negative)
            for negative in dict.fromkeys(branches)
        }
        streams = [[*own, seen[negative]] for own, (negative, _, _) in zip(streams, kinds, strict=True)]
    return streams, [kinds.index(row) for row in rows]


def story_parts(job: StoryJob, adapter: IdentityAdapter) -> list[Part]:
    """The parts that have maps of their own in a story: those of characters with references that a prompt has words
    for, where the adapter has streams of parts.
    """
    names = [one.character for one in job.identities]
    said = {part for prompt in prompts_of(job) for part in _said(prompt, names, adapter)}
    return [(name, part) for name in job.characters for part in PARTS if (name, part) in said]


def with_parts(
    token_mask: Tensor, job: StoryJob, adapter: IdentityAdapter | None, encoder: TextEncoder
) -> tuple[Tensor, Tensor | None]:
    """The tokens of the characters, and of those of their parts that have maps of their own.

    Args:
        token_mask: of the characters, bool [G, K, T].
        job: the story, with the prompts that the encoder reads.
        adapter: the one it uses; None: nobody has references.
        encoder: of the text.

    Returns:
        ``token_mask`` and ``part_of`` of ``StoryState``.
    """
    parts = [] if adapter is None else story_parts(job, adapter)
    if not parts:
        return token_mask, None
    prompts = prompts_of(job)
    spans = [[part_spans(prompt, name).get(part, ()) for name, part in parts] for prompt in prompts]
    more = encoder.span_mask([prompt.text for prompt in prompts], spans)
    owners = [-1] * len(job.characters) + [job.characters.index(name) for name, _ in parts]
    return torch.cat([token_mask, more], dim=1), torch.tensor(owners, device=token_mask.device)


def _said(prompt: ComposedPrompt, names: Iterable[str], adapter: IdentityAdapter) -> tuple[Part, ...]:
    if not adapter.maker.by_parts:
        return ()
    return tuple((name, part) for name in names for part in part_spans(prompt, name))


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
