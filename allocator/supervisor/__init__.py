"""Supervision: a worker started on a leased port, and the port given back when it ends.

Lives here: what is done with a held lease around a child process. May not live here: how leases work.
"""
