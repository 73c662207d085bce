"""Stories, their events and artifacts, and characters."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the first tables."""
    op.create_table(
        "story",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("request_digest", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("frames", sa.Integer, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("deadline_at", sa.Double),
        sa.Column("parent_id", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double),
        sa.Column("expires_at", sa.Double),
        sa.Column("replica", sa.Text, nullable=False),
        sa.Column("life", sa.Text, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("sequence_reserved", sa.BigInteger, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("error", sa.LargeBinary),
        sa.Column("summary", sa.LargeBinary),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_story"),
        sa.UniqueConstraint("tenant", "request_id", name="uq_story_tenant_request_id"),
    )
    op.create_index("ix_story_tenant_created_at_id", "story", ["tenant", "created_at", "id"])
    op.create_index("ix_story_finished_at", "story", ["finished_at"])
    still_open = sa.text("finished_at IS NULL")
    op.create_index("ix_story_open", "story", ["created_at"], sqlite_where=still_open, postgresql_where=still_open)
    op.create_table(
        "artifact",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("story_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_artifact"),
        sa.ForeignKeyConstraint(["story_id"], ["story.id"], name="fk_artifact_story_id", ondelete="CASCADE"),
    )
    op.create_index("ix_artifact_story_id_kind_position", "artifact", ["story_id", "kind", "position"])
    op.create_table(
        "event",
        sa.Column("story_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("picture", sa.Text),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("story_id", "sequence", name="pk_event"),
        sa.ForeignKeyConstraint(["story_id"], ["story.id"], name="fk_event_story_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["picture"], ["artifact.key"], name="fk_event_picture"),
    )
    op.create_index("ix_event_picture", "event", ["picture"])
    op.create_table(
        "character",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_character"),
    )
    op.create_index("ix_character_tenant_created_at_id", "character", ["tenant", "created_at", "id"])
