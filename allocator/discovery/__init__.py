"""Finding workers: a directory of services kept current by events, balancing on the client's side, exports for proxies.

Lives here: what is done with the addresses of ready workers. May not live here: how a lease comes to be, printing.
"""
