"""What encoders made of references."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the table of features."""
    op.create_table(
        "features",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("story_id", sa.Text),
        sa.Column("character_id", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("blended", sa.Boolean, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("encoders", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("notes", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_features"),
        sa.ForeignKeyConstraint(["story_id"], ["story.id"], name="fk_features_story_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["character_id"], ["character.id"], name="fk_features_character_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_features_tenant_digest_encoders", "features", ["tenant", "digest", "encoders"])
    op.create_index("ix_features_story_id", "features", ["story_id"])
    op.create_index("ix_features_character_id", "features", ["character_id"])
