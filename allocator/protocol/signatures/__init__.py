"""The signatures: for each script its arguments as one value, with one `encode` and one `decode`, and its replies.

Lives here: a module for each script or for two that go together. Only these modules know the order of ARGV and of a
reply's elements. Nothing is imported here, so that a claim at the command line loads no other signature than its own.
"""
