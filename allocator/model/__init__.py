"""The values of portlease: names, leases, states, pools, errors, durations, settings.

Lives here: values and their rules. May not live here: anything that reads a clock, a socket, a file or Redis.
"""
