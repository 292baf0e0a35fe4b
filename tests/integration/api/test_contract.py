"""Schemathesis over the whole API: no 5xx, and nothing that contradicts the document that the server itself gives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import schemathesis
from api_server import served
from hypothesis import HealthCheck, given, settings

from allocator import AsyncPortAllocator, PoolSpec, PortAllocator
from allocator.api.access import Access
from allocator.api.application import create_app
from allocator.api.credentials import Scope, TokensFile, new_api_token, tokens_line
from allocator.api.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

schemathesis.checks.load_all_checks()
POSITIVE = schemathesis.checks.CHECKS.get_one("positive_data_acceptance")
"""A port outside the pool and a TTL that it does not allow have the right form and are refused all the same."""
TOKEN = new_api_token()
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
EXAMPLES = 10 if os.environ.get("ALLOCATOR_TEST_PROFILE") == "quick" else 40

SPEC = PoolSpec(name="contract", first=14_000, last=14_400, cooldown_ms=0)


@pytest.fixture(scope="module")
def contract_url(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with PortAllocator.from_url(redis_url, pool=SPEC.name, host="web-1") as ports:
        ports.apply_pool(SPEC)
        ports.claim("email", org="org-1")
    allocator = AsyncPortAllocator.from_url(redis_url, pool=SPEC.name, host="web-1")
    tokens = tmp_path_factory.mktemp("contract") / "tokens"
    tokens.write_text(tokens_line("all", Scope.ADMIN, TOKEN))
    with served(create_app(allocator, access=Access(TokensFile(tokens)), limits=Limits(requests_per_s=0))) as url:
        yield url


def operations() -> list:
    """Return every operation of the document but the endless streams, each a parameter."""
    document = create_app(AsyncPortAllocator.from_url("unix:///nowhere", pool=SPEC.name, host="web-1")).openapi()
    schema = schemathesis.openapi.from_dict(document)
    found = [result.ok() for result in schema.get_all_operations()]
    return [pytest.param(one, id=one.label) for one in found if one.path not in {"/v1/events", "/v1/fleet/changes"}]


@pytest.mark.parametrize("operation", operations())
def test_no_request_contradicts_the_document(operation, contract_url: str) -> None:
    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def try_out(case) -> None:
        for text in (case.body, case.query):
            if isinstance(text, dict):
                text.pop("wait_s", None)
        case.call_and_validate(base_url=contract_url, timeout=20, headers=HEADERS, excluded_checks=[POSITIVE])

    try_out()
