"""SQL: the table of workers, its migrations, and the reconciler that keeps it equal to the leases.

Lives here: what reads and writes `plugin_runners` through SQLAlchemy Core, and what compares it with Redis and with
this host's kernel. May not live here: the decision who has a port. Redis makes it; a row follows its lease, and every
write carries the lease's fence, so that an older one changes nothing.
"""
