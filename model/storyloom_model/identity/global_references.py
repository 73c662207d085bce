"""Global references: all pictures of a story's earlier round, as one identity stream that acts everywhere.

Story-Adapter's global reference cross-attention: the tokens of all pictures lie side by side, so that a query takes one
softmax over all of them. See ``methods.storyadapter``.
"""

from __future__ import annotations

from storyloom_model.identity.adapter import CharacterIdentity, IdentityAdapter, Stream
from storyloom_model.identity.features import FeaturesError, IdentityFeatures
from storyloom_model.jobs import GlobalReferences

_NAME = "the round before"
"""Stands for a character's name in what is said of the pictures."""


def global_stream(references: GlobalReferences, adapter: IdentityAdapter, *, negative: bool) -> Stream:
    """The stream of a row.

    Args:
        references: of the job.
        adapter: one that reads whole pictures.
        negative: for the negative prompt, where each picture counts as an empty one.

    Raises:
        FeaturesError: features are damaged, of other encoders, or lack what the adapter reads.
    """
    features = IdentityFeatures.from_bytes(references.features)
    if adapter.encoders is not None and features.networks != adapter.encoders:
        raise FeaturesError(
            f"the pictures of the round before were seen by other encoders than identity adapter {adapter.name} was "
            "made for; make the story anew"
        )
    seen = {_NAME: CharacterIdentity(features, references.scale)}
    (stream,) = adapter.maker.negative_streams(seen) if negative else adapter.maker.streams(seen)
    return Stream(stream.tokens, None, references.scale)
