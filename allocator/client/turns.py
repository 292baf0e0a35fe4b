"""Claims of the blocking and the async allocator: once, and in line behind those who wait where the caller may wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from allocator.model.errors import AllocatorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.client.policies import ClaimPatience
    from allocator.client.session import Session
    from allocator.operations.claim import ClaimRequest
    from allocator.operations.steps import Operation

T = TypeVar("T")


def claim_in_turn(
    session: Session,
    request: ClaimRequest,
    attempt: Callable[[ClaimRequest], Operation[T]],
    patience: ClaimPatience,
    *,
    adjacent: bool = False,
) -> Operation[T]:
    """Claim at once, or in line behind those who wait already.

    Args:
        session: Who claims.
        request: What it asks for.
        attempt: Makes the operation that asks for it once.
        patience: For how long to wait, and for what.
        adjacent: Whether it asks for a block of adjacent ports.

    Raises:
        AllocatorError: When nothing was had in time.
    """
    try:
        return (yield from attempt(request))
    except AllocatorError as error:
        if not patience.waits_after(error):
            raise
    from allocator.operations.queue import Wish, claim_in_line

    return (
        yield from claim_in_line(
            session.context,
            Wish(request, attempt, adjacent),
            deadline=patience.deadline,
            rng=session.rng,
            worth_retrying=patience.worth_retrying,
        )
    )
