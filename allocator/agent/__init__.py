"""The agent of a host: looks after leases that are bound to processes which do not look after them themselves.

Lives here: renewing, releasing, checking, and notifying systemd. May not live here: HTTP (the command mounts the
application of `allocator.api`), running workers (that is the supervisor's).
"""
