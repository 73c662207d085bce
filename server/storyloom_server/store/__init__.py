"""What survives the process: stories, their events and pictures, and characters.

``store.Store`` is what the server holds. The operations are functions of a transaction: ``journal`` (the life of a
story), ``leases`` (who works on it), ``characters``, ``features`` (what encoders made of their references), ``quotas``
and ``cleanup``; ``retention`` decides what is deleted when. Below them are ``database`` (SQLite or PostgreSQL),
``schema`` with ``migrations`` for ``tables``, ``writer`` (group commit), ``blobs`` and ``folder``. No gRPC and no torch
here: payloads are bytes.

What holds after the process was killed at any moment: an accepted story is in the database; so is an event that was
stored, and its picture lies in blob storage, because it was written before; blobs without a row are collected later.
"""

from storyloom_server.store.database import Owner, Transaction
from storyloom_server.store.records import (
    Accepted,
    Artifact,
    ArtifactKind,
    Character,
    Event,
    Features,
    NewCharacter,
    NewEvent,
    NewStory,
    Page,
    Quota,
    Renewal,
    Story,
    StoryFeatures,
    StoryState,
    Usage,
)
from storyloom_server.store.retention import RetentionPolicy, Sweeper, SweepReport
from storyloom_server.store.store import Store, StoreOptions

__all__ = [
    "Accepted",
    "Artifact",
    "ArtifactKind",
    "Character",
    "Event",
    "Features",
    "NewCharacter",
    "NewEvent",
    "NewStory",
    "Owner",
    "Page",
    "Quota",
    "Renewal",
    "RetentionPolicy",
    "Store",
    "StoreOptions",
    "Story",
    "StoryFeatures",
    "StoryState",
    "SweepReport",
    "Sweeper",
    "Transaction",
    "Usage",
]
