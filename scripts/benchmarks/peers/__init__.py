"""What people use instead of this package, driven as its own documentation states, and this package driven likewise.

A peer leases one port of a range and gives it back. Nothing here may favour one of them: all get the same driver, the
same server, the same connection, and processes that are ready before the clock starts.
"""
