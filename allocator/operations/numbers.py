"""The instance that a service has for a key: `--instance auto --key NAME`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import ConfigurationError
from allocator.model.names import check_name
from allocator.operations.context import pool_rules
from allocator.protocol.replies import NoPool
from allocator.protocol.signatures.number import NumberCall
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation


def number_of(context: Context, pool: str, org: str, plugin: str, key: str) -> Operation[int]:
    """Return the instance of a service that this host has for a key: the same again, and no other's.

    It is remembered for 30 days after it was asked for last.

    Args:
        context: Who calls.
        pool: The pool.
        org: The organisation.
        plugin: The plugin.
        key: A name, which only has to differ from others of this host.

    Raises:
        InvalidInputError: When the key is not a name.
        PoolMissingError: When nobody knows the pool.
    """
    check_name("key", key)
    for fresh in (False, True):
        rules = yield from pool_rules(context, pool, fresh=fresh)
        host = f"{context.host}:{key}"
        namespace = rules.namespace_of(context.host)
        found = yield from ask(NumberCall(pool=pool, namespace=namespace, org=org, plugin=plugin, key=host))
        if not isinstance(found, NoPool):
            return found
    raise ConfigurationError(f"pool {pool} vanishes as soon as it is made; is Redis being emptied?")
