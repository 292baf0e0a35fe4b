"""Names for other systems: two names never become one, every name comes back, and a plain one stays as it is."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from allocator.model.encodings import (
    ENVIRONMENT,
    FILE,
    HAPROXY,
    HOST,
    NGINX,
    PROXY,
    host_name,
    service_of_host,
)
from allocator.model.errors import InvalidInputError
from allocator.model.names import check_name, check_plugin

ALPHABETS = {"proxy": PROXY, "nginx": NGINX, "haproxy": HAPROXY, "host": HOST, "environment": ENVIRONMENT, "file": FILE}
WRITTEN = {
    "proxy": r"[A-Za-z0-9._+~-]+",
    "nginx": r"[a-z0-9._+~-]+",
    "haproxy": r"[A-Za-z0-9._:-]+",
    "host": r"[a-z0-9]([a-z0-9-]*[a-z0-9])?",
    "environment": r"[A-Za-z_][A-Za-z0-9_]*",
    "file": r"[a-z0-9._+~-]+",
}
"""What each target takes."""
FOLDING = {"nginx", "host", "file"}
"""Targets that ignore case."""

by_alphabet = pytest.mark.parametrize("target", sorted(ALPHABETS))


def valid(check):
    def is_valid(text):
        try:
            check(text)
        except InvalidInputError:
            return False
        return True

    return is_valid


# Few letters, so that names come close to each other and to every code.
CLOSE = "aAcdhipsuxX01"
ORG = st.from_regex(rf"[{CLOSE}]([{CLOSE}._-]{{0,8}}[{CLOSE}])?", fullmatch=True).filter(
    valid(lambda t: check_name("o", t))
)
PACKAGE = st.from_regex(r"@[acdhipsux01][acdhipsux01._-]{0,4}/[acdhipsux01][acdhipsux01._-]{0,6}", fullmatch=True)
BASE = st.one_of(ORG, PACKAGE)
PLUGIN = st.one_of(BASE, st.builds("{}+{}".format, BASE, ORG)).filter(valid(check_plugin))
SERVICES = st.tuples(PLUGIN, ORG)


@by_alphabet
@given(name=PLUGIN | ORG)
@example(name="@hay/plugin-email")
@example(name="x--a")
@example(name="Xx")
@example(name="x.a-_a--A")
def test_every_name_comes_back(target: str, name: str) -> None:
    alphabet = ALPHABETS[target]
    text = alphabet.encode(name)
    assert re.fullmatch(WRITTEN[target], text), text
    assert alphabet.decode(text) == name


@by_alphabet
@given(one=SERVICES, other=SERVICES)
@example(one=("a.b", "c"), other=("a", "b.c"))
@example(one=("email", "Org"), other=("email", "org"))
@example(one=("a-b", "c"), other=("a_b", "c"))
@example(one=("a+b", "c"), other=("a-b", "c"))
@example(one=("a--b", "c"), other=("a", "b--c"))
@example(one=("@a/b", "c"), other=("a", "b"))
@example(one=("Aa", "c"), other=("xAa", "c"))
def test_two_services_never_become_one(target: str, one: tuple[str, str], other: tuple[str, str]) -> None:
    assume(one != other)
    names = [ALPHABETS[target].service(*service) for service in (one, other)]
    if target in FOLDING:
        names = [name.lower() for name in names]
    assert names[0] != names[1]


@by_alphabet
@given(name=st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True))
def test_a_plain_name_stays_as_it_is(target: str, name: str) -> None:
    wanted = name.upper().replace("-", "_") if target == "environment" else name
    assert ALPHABETS[target].encode(name) in {wanted, f"_{wanted}" if name[0] in string.digits else wanted}


@given(service=SERVICES)
def test_a_host_name_names_its_service(service: tuple[str, str]) -> None:
    name = host_name(*service)
    assert name is None or service_of_host(name) == service


def test_a_host_name_has_at_most_63_letters_a_label_and_253_in_all() -> None:
    assert host_name("a" * 63, "b") == f"{'a' * 63}.b"
    assert host_name("a" * 64, "b") is None
    assert host_name("@a/" + "b" * 211, "b") is None


def test_names_as_they_were_before_there_were_codes() -> None:
    assert service_of_host("email.org-123") == ("email", "org-123")
    assert service_of_host("my_plugin.org_1") == ("my_plugin", "org_1")
    assert service_of_host("email.org.x") == ("email", "org.x")
    for text in ("", "email", ".x", "email."):
        with pytest.raises(InvalidInputError, match=r"names no service; write PLUGIN\.ORG"):
            service_of_host(text)
