"""What is done with leases, as generators without I/O: claim, renew, end, resolve, queue, hosts, pools, listing.

Lives here: one module per verb, and the steps that they yield. May not live here: a socket, a clock, a random number,
Redis. They are passed in, or asked for as steps.
"""
