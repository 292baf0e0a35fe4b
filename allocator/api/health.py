"""`/healthz` and `/readyz`: whether this process runs, and whether it can do its work. Both need no credentials."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from allocator.api.routes import claims_of, problems

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """That all is well; anything else is a problem."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def healthz() -> Health:
    """Report that this process answers. It asks nobody else: a restart would not fix Redis."""
    return Health()


@router.get("/readyz", responses={503: problems()[503]})
async def readyz(request: Request) -> Health:
    """Report whether Redis answers; a load balancer sends nothing here while it does not."""
    await claims_of(request).allocator.store.server_time()
    return Health()
