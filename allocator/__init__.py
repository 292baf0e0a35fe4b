"""portlease: port leases for worker fleets, on Redis locks, checked against the kernel.

Lives here: the public names, loaded when they are first used, so that `import allocator` costs nothing.
"""
