"""The agent of a host: looks after leases that are tied to processes which do not look after them themselves.

Lives here: renewing, releasing, checking, and what systemd is told. May not live here: HTTP (the command mounts the
application of `allocator.api`), running workers (that is the supervisor's).
"""
