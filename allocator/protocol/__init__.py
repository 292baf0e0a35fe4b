"""The wire, without I/O: the Lua scripts, the calls that are sent to them, and what their replies mean.

Lives here: `lua/`, keys, calls, replies and their decoding. May not live here: a socket, a clock, a decision.
"""
