"""The tables of the store, the same on SQLite and PostgreSQL. All times are epoch seconds.

What changes here needs a new file in ``migrations/versions``; a test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Prompts and images are in `request` and `summary` alone, and in the payloads of events. `request` comes last, so that
# reading the other columns of a row does not read it.
story = Table(
    "story",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("request_id", Text),
    Column("request_digest", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("frames", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("deadline_at", Double),
    Column("parent_id", Text),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("finished_at", Double),
    # When the story may be deleted once it has ended; NULL: as long after its end as the server keeps stories.
    Column("expires_at", Double),
    # Who works on it: `replica` outlives a restart of the server, `life` is one run of it.
    Column("replica", Text, nullable=False),
    Column("life", Text, nullable=False),
    Column("lease_until", Double, nullable=False),
    # How often the engine or the server died while it worked on the story.
    Column("crashes", Integer, nullable=False),
    # Clients may have seen event numbers up to this one.
    Column("sequence_reserved", BigInteger, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    # Size of the request, of the events and of all artifacts.
    Column("size_bytes", BigInteger, nullable=False),
    # A serialised google.rpc.Status, of a failed story.
    Column("error", LargeBinary),
    Column("summary", LargeBinary),
    Column("request", LargeBinary, nullable=False),
    UniqueConstraint("tenant", "request_id"),
    Index(None, "tenant", "created_at", "id"),
    Index(None, "finished_at"),
)
# The open stories: few, among many that have ended.
_still_open = story.c.finished_at.is_(None)
Index("ix_story_open", story.c.created_at, sqlite_where=_still_open, postgresql_where=_still_open)

# What lies in blob storage. A row is written after its blob, and deleted before it.
artifact = Table(
    "artifact",
    metadata,
    Column("key", Text, primary_key=True),
    Column("story_id", Text, ForeignKey("story.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Index(None, "story_id", "kind", "position"),
)

# Durable events only. A picture is not in the payload but in blob storage.
event = Table(
    "event",
    metadata,
    Column("story_id", Text, ForeignKey("story.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("picture", Text, ForeignKey("artifact.key")),
    Column("payload", LargeBinary, nullable=False),
    # So that deleting artifacts finds the events that refer to them.
    Index(None, "picture"),
)

character = Table(
    "character",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index(None, "tenant", "created_at", "id"),
)

# What encoders made of references. A row belongs to a story or to a kept character, and goes with it: whoever deletes
# one of them need not look for what others hold of the same pictures.
features = Table(
    "features",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("story_id", Text, ForeignKey("story.id", ondelete="CASCADE")),
    Column("character_id", Text, ForeignKey("character.id", ondelete="CASCADE")),
    # Of a story: the name of its character, and whether these are the looks that are mixed in.
    Column("name", Text, nullable=False),
    Column("blended", Boolean, nullable=False),
    # The pictures that they were made of, and what made them.
    Column("digest", Text, nullable=False),
    Column("encoders", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # One note a line.
    Column("notes", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Index(None, "tenant", "digest", "encoders"),
    Index(None, "story_id"),
    Index(None, "character_id"),
)
