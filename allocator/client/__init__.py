"""Holding leases: the allocators (blocking and async), `hold()`, heartbeats, the policies of retrying, lease files.

Lives here: whatever drives the protocol's operations against a store and this host's kernel. May not live here:
commands, supervision of processes, SQL.
"""
