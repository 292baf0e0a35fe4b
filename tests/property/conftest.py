"""Profiles of Hypothesis, and the servers that the state machine is run on.

`ALLOCATOR_TEST_PROFILE=quick` is for a change under way; `default` for every run of the tests; `long` for a night.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, Phase, settings

# Without the phase that explains a failure: it traces every line and takes minutes.
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
_SERVERS_ARE_SLOW = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "phases": PHASES,
}
settings.register_profile("quick", max_examples=8, stateful_step_count=25, **_SERVERS_ARE_SLOW)
settings.register_profile("default", max_examples=30, stateful_step_count=40, **_SERVERS_ARE_SLOW)
settings.register_profile("long", max_examples=500, stateful_step_count=80, **_SERVERS_ARE_SLOW)
PROFILE = os.environ.get("ALLOCATOR_TEST_PROFILE", "default")


@pytest.fixture(autouse=True)
def nothing_to_collect() -> None:
    """Leave no garbage whose collection, while Hypothesis parses a test's source, would parse source itself.

    CPython 3.11 then stops with a SystemError (github.com/python/cpython/issues/106905).
    """
    gc.collect()


@pytest.fixture(scope="session")
def profile() -> settings:
    """Return the profile that was asked for; it is not made the default of other tests."""
    return settings.get_profile(PROFILE)
