"""The table of workers, its indexes and checks, and the table of leaders: created, or what is missing of them added.

The statements come from the planner (`allocator/database/plan.py`), which compares with what the database has.
"""

from __future__ import annotations

from alembic import context, op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Carry out the plan."""
    for step in context.config.attributes["steps"]:
        op.execute(step.clause)


def downgrade() -> None:
    """Leave everything: the rows are worth more than an empty schema."""
