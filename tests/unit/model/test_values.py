"""The values that everything else is made of: what they accept, what they refuse, and in which words."""

from __future__ import annotations

import pytest

from allocator.model.durations import format_duration, parse_duration_ms, written_duration
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.leases import Lease, error_line, written_time
from allocator.model.names import (
    WorkerId,
    check_labels,
    check_name,
    check_plugin,
    check_port,
    environment_hint,
    environment_names,
    short_name,
    shown,
)
from allocator.model.pools import SDK_V2, PoolSpec
from allocator.model.states import ENDED_STATES, LIVE_STATES, TRANSITIONS, LeaseState

BAD_NAMES = [
    "",
    " ",
    "a:b",
    "a b",
    "a\n",
    "\n",
    "a{b}",
    "-a",
    "a-",
    ".",
    "é",
    "a\x00",
    'a"b',
    "a/b",
    "a#1",
    "x" * 10_000,
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["organisation", "plugin", "host", "pool"])
def test_a_bad_name_is_one_short_line_that_states_what_it_is_for(kind, name):
    with pytest.raises(InvalidInputError) as reported:
        check_name(kind, name)
    assert kind in str(reported.value)
    assert str(reported.value).isprintable()
    assert len(str(reported.value)) < 250


@pytest.mark.parametrize("name", ["a", "A-1", "org_1.x", "0", "x" * 128])
def test_a_good_name_passes(name):
    assert check_name("host", name) == name


@pytest.mark.parametrize("port", [0, -1, 65_536, "abc", "", "5 5", "0x10", "5.5", 5.5, True, "٣", 10**30, "+5", "5\n"])
def test_a_bad_port_is_refused(port):
    with pytest.raises(InvalidInputError, match="is not a port; give a whole number from 1 to 65535"):
        check_port(port)


@pytest.mark.parametrize(("port", "wanted"), [(1, 1), ("65535", 65_535), ("05556", 5_556)])
def test_a_good_port_passes(port, wanted):
    assert check_port(port) == wanted


@pytest.mark.parametrize(
    "text", ["", "5", "5 parsecs", "-5s", "5S", "s", "1e3s", "5s5s", "1.2345s", "9" * 13 + "s", "٣s"]
)
def test_a_bad_duration_is_refused(text):
    with pytest.raises(InvalidInputError, match="write it like 500ms, 30s, 10m or 1h"):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("250ms", 250), ("1.5s", 1_500), ("30s", 30_000), ("10m", 600_000), ("1h", 3_600_000), ("7d", 604_800_000)],
)
def test_a_duration_reads_back_as_it_is_written(text, ms):
    assert parse_duration_ms(text) == ms
    assert parse_duration_ms(written_duration(ms)) == ms


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (-5, "0 ms"),
        (250, "250 ms"),
        (1_500, "1.5 s"),
        (11_000, "11 s"),
        (180_000, "3 min"),
        (7_200_000, "2 h"),
    ],
)
def test_a_duration_for_people(ms, text):
    assert format_duration(ms) == text


@pytest.mark.parametrize("text", ["email", "a/b#", "a/b#x", "a/b#-1", "a/b#1.0", "/b", "a/", "a/b/c", "a/b#100000"])
def test_a_bad_worker_is_refused(text):
    with pytest.raises(InvalidInputError):
        WorkerId.parse(text)


@pytest.mark.parametrize("instance", [-1, 100_000, 1.5, "1", None, True])
def test_an_instance_is_a_whole_number(instance):
    with pytest.raises(InvalidInputError, match="is not an instance"):
        WorkerId("org", "email", instance)


def test_a_worker_reads_back_as_it_is_written():
    for text in ("a/b#0", "org-1/custom-1#99999"):
        assert str(WorkerId.parse(text)) == text
    assert WorkerId.parse("a/b") == WorkerId("a", "b", 0)


def test_labels_are_bounded():
    assert check_labels({"a": "é x"}) == {"a": "é x"}
    for labels in ({"a b": "x"}, {"a": "x" * 257}, {"a": "\n"}, {f"l{i}": "x" for i in range(17)}):
        with pytest.raises(InvalidInputError):
            check_labels(labels)


def test_the_variable_of_a_plugin():
    assert environment_names("email") == ("EMAIL_PLUGIN_PORT",)
    assert environment_names("custom-1") == ("CUSTOM_1_PLUGIN_PORT",)
    assert environment_names("@hay/plugin-email") == ("HAY_PLUGIN_EMAIL_PLUGIN_PORT", "EMAIL_PLUGIN_PORT")


def test_the_environment_names_a_port_by_the_full_name_before_the_short_one():
    both = {"EMAIL_PLUGIN_PORT": "5570", "HAY_PLUGIN_EMAIL_PLUGIN_PORT": "5571"}
    assert environment_hint("@hay/plugin-email", both) == 5571
    assert environment_hint("@hay/plugin-email", {"EMAIL_PLUGIN_PORT": "5570"}) == 5570
    assert environment_hint("@hay/plugin-email", {}) is None
    with pytest.raises(InvalidInputError, match="the variable EMAIL_PLUGIN_PORT: 'x' is not a port"):
        environment_hint("@hay/plugin-email", {"EMAIL_PLUGIN_PORT": "x"})


@pytest.mark.parametrize(
    "name", ["email", "@hay/plugin-email", "@a/b", "@a/b.", "@a/b_-c", "@a/" + "b" * 211, "@a/b+debug"]
)
def test_a_plugin_may_have_the_name_of_an_npm_package(name):
    assert check_plugin(name) == name
    worker = WorkerId("org-1", name, 7)
    assert WorkerId.parse(str(worker)) == worker


@pytest.mark.parametrize(
    "name",
    [
        "@",
        "@/x",
        "@a/",
        "@a",
        "a/b",
        "a@b",
        "@a/b/c",
        "@a/..",
        "@../a",
        "@A/b",
        "@a/B",
        "@é/b",
        "@a/b c",
        "@a/b\n",
        "@a/" + "b" * 212,
        "@a/.b",
        "@a/_b",
        "@a/b+",
        "..",
        "@a/b#1",
        "@a/b:c",
    ],
)
def test_a_bad_plugin_is_one_line_that_names_it(name):
    with pytest.raises(InvalidInputError) as refused:
        check_plugin(name)
    text = str(refused.value)
    assert text.isprintable()
    assert text.startswith(shown(name)) or name.endswith("+")
    assert len(text) < 250


@pytest.mark.parametrize(
    ("plugin", "short"),
    [
        ("email", "email"),
        ("plugin-email", "email"),
        ("email-plugin", "email"),
        ("@hay/plugin-email", "email"),
        ("@hay/email-plugin", "email"),
        ("@hay/email", "email"),
        ("@hay/plugin-a-plugin", "a-plugin"),
        ("@hay/plugin-", "plugin-"),
        ("plugin", "plugin"),
    ],
)
def test_the_short_name_of_a_plugin(plugin, short):
    assert short_name(plugin) == short


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"first": 9, "last": 8}, "is not a port range"),
        ({"first": 0}, "is not a port range"),
        ({"last": 65_536}, "is not a port range"),
        ({"conventional": {"a": (7,), "b": (7,)}}, "belongs to both a and b"),
        ({"conventional": {"a": (7, 7)}}, "belongs to both a and a"),
        ({"conventional": {"a": (99,)}}, "is outside 1-20"),
        ({"conventional": {"a b": (7,)}}, "plugin name"),
        ({"ttl_ms": 500}, "are out of order"),
        ({"ttl_min_ms": 1}, "are out of order"),
        ({"ttl_max_ms": 10**12}, "are out of order"),
        ({"grace_ms": -1}, "is out of bounds"),
        ({"cooldown_ms": 10**12}, "is out of bounds"),
        ({"name": "a:b"}, "pool name"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(changed, text):
    with pytest.raises(InvalidInputError, match=text):
        PoolSpec(**{"name": "p", "first": 1, "last": 20, **changed})


def test_too_many_conventional_ports_are_refused():
    with pytest.raises(InvalidInputError, match="1025 conventional ports are too many"):
        PoolSpec(name="p", first=1, last=2_000, conventional={"a": tuple(range(1, 1_026))})


@pytest.mark.parametrize(
    "pool",
    [
        SDK_V2,
        PoolSpec(name="p", first=1, last=65_535, scope="fleet", spill=False),
        PoolSpec(name="p", first=5, last=9, conventional={"a": (5, 7), "b": (9,)}),
    ],
)
def test_a_pool_reads_back_from_its_fields(pool):
    assert PoolSpec.from_fields(pool.name, pool.as_fields()) == pool


def test_a_plugin_without_ports_leaves_no_field():
    fields = PoolSpec(name="p", first=5, last=9, conventional={"a": ()}).as_fields()
    assert PoolSpec.from_fields("p", fields).conventional == {}


@pytest.mark.parametrize("rule", ["first", "last", "ttl_ms", "scope", "spill", "grace_ms"])
def test_a_pool_with_a_rule_missing_names_its_key(rule):
    fields = SDK_V2.as_fields()
    fields["rules"] = " ".join(name for name in fields["rules"].split() if not name.startswith(f"{rule}="))
    with pytest.raises(ConfigurationError, match=r"key alloc:\{sdk-v2\} does not hold a pool"):
        PoolSpec.from_fields("sdk-v2", fields)


def test_the_dynamic_ranges_are_what_belongs_to_nobody():
    assert PoolSpec(name="p", first=1, last=9, conventional={"a": (1, 5, 9)}).dynamic_ranges() == ((2, 4), (6, 8))
    assert PoolSpec(name="p", first=1, last=1, conventional={"a": (1,)}).dynamic_ranges() == ()


def test_a_lease_shows_no_token():
    lease = Lease(
        pool="p", host="h", port=1, worker=WorkerId("o", "p"), fence=1, ttl_ms=1_500, granted_at=0.0,
        expires_at=1.5, token="s" * 32,
    )  # fmt: skip
    assert "s" * 32 not in repr(lease)
    assert "token" not in lease.as_json()
    assert lease.as_json(with_token=True)["token"] == "s" * 32
    assert lease.as_json()["expires_at"] == "1970-01-01T00:00:01.500Z"
    assert lease.as_json()["ttl_s"] == 1.5
    assert written_time(0.9996) == "1970-01-01T00:00:00.999Z"


def test_every_state_has_its_row_and_what_has_ended_stays_ended():
    assert set(TRANSITIONS) == set(LeaseState)
    assert all(TRANSITIONS[state] == frozenset() for state in ENDED_STATES)
    assert all(TRANSITIONS[state] >= ENDED_STATES for state in LIVE_STATES)
    assert LeaseState.READY not in TRANSITIONS[LeaseState.DRAINING]


def test_a_last_error_is_one_printable_line_of_at_most_500_characters() -> None:
    assert error_line("Error: a\n  at b\x1b[31m\r\n") == "Error: a at b [31m"
    long = error_line("x" * 300 + "\n" + "y" * 600)
    assert len(long) == 500
    assert long.startswith("…y")
