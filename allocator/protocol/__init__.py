"""The protocol, without I/O: the Lua scripts, what is sent to them, what their replies mean, and the operations.

Lives here: `lua/`, one module per script that encodes its call and decodes its reply, and the operations that a
client drives. May not live here: a socket, a clock, a random number, Redis. They are passed in or asked for as steps.
"""
