"""What this host's kernel knows: sockets, processes, and which host it is.

Lives here: reading the kernel and trying a bind. May not live here: Redis, leases, anything that decides who gets a
port. psutil is imported only where the kernel's own tables are missing.
"""
