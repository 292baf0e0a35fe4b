"""Redis: URLs, connections blocking and async, what its errors mean, whether a server will do, the embedded server.

Lives here: everything that knows how to speak to Redis. May not live here: what is in a script or what its reply means.
One server is spoken to through hiredis itself; redis-py, for Sentinel and Cluster, is imported by `redis_py` only.
"""
