"""What `doctor` looks at, a module per subject. Each check yields findings, changes nothing, and prints nothing.

A check that cannot be made because something is away raises an AllocatorError; the command makes a finding of it.
"""
