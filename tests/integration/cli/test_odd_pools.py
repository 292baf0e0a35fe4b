"""A key of another program that looks like a pool hides no pool."""

from __future__ import annotations

from servers import Server


def test_a_key_that_only_looks_like_a_pool_hides_no_other(allocator) -> None:
    with Server() as server:
        server.ready()
        own = {"ALLOCATOR_REDIS_URL": server.url, "ALLOCATOR_POOL": "sdk-v2"}
        assert allocator("claim", "email", "--org", "org-1", **own).code == 0
        server.client().sadd("alloc:{other}", "a member")
        done = allocator("pool", "ls", **own)
        assert (done.code, "sdk-v2" in done.out) == (0, True)
        assert "key alloc:{other} holds a value of the wrong type" in done.err
