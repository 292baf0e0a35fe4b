"""The migrations of Alembic: `env.py` and one file per revision in `versions`.

A revision carries out what the planner found to be missing, so that it creates a table or adopts one that is there.
"""
