"""Redis: URLs, connections blocking and async, what its errors mean, whether a server will do, the embedded server.

Lives here: everything that knows a Redis client. May not live here: what is in a script or what its reply means.
Redis clients are imported when a connection is opened, not before.
"""
