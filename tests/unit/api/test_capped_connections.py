"""Who makes room for whom among the connections of a server."""

from __future__ import annotations

import pytest

from allocator.api.connections import Connection, ConnectionLimits, Connections, Phase, counted_address


class Client:
    def __init__(
        self, connections: Connections, address: str | None = "192.0.2.1", phase: Phase = Phase.SENDING
    ) -> None:
        self.is_open = True
        self.connection = Connection(connections, address)
        self.connection.end = self._end
        self.connection.become(phase)

    def _end(self) -> None:
        self.is_open = False


def connections(total: int = 4, by_address: int = 3) -> Connections:
    return Connections(ConnectionLimits(total=total, by_address=by_address))


def test_the_one_that_waits_longest_makes_room_and_unfinished_requests_before_idle_connections() -> None:
    found = connections()
    clients = [
        Client(found, f"192.0.2.{n}", phase) for n, phase in enumerate([Phase.IDLE, Phase.SENDING, Phase.SENDING])
    ]
    working = Client(found, "192.0.2.9", Phase.ANSWERED)
    order = []
    for number in range(4):
        assert found.make_room(f"198.51.100.{number}") is (number < 3)
        order += [one for one in clients if not one.is_open and one not in order]
        if number < 3:
            Client(found, f"198.51.100.{number}", Phase.ANSWERED)
    assert order == [clients[1], clients[2], clients[0]]
    assert working.is_open


def test_one_address_makes_room_for_itself_only() -> None:
    found = connections(total=10)
    other = Client(found, "192.0.2.2")
    own = [Client(found) for _ in range(3)]
    assert found.make_room("192.0.2.1")
    assert [one.is_open for one in own] == [False, True, True]
    assert other.is_open
    for one in own[1:]:
        one.connection.become(Phase.ANSWERED)
    Client(found, phase=Phase.ANSWERED)
    assert not found.make_room("192.0.2.1")
    assert found.make_room("192.0.2.2")


def test_what_has_ended_is_counted_no_more_however_often_that_is_reported() -> None:
    found = connections()
    for _ in range(10):
        client = Client(found)
        client.connection.forget()
        client.connection.become(Phase.IDLE)
        client.connection.forget()
    assert len(found) == 0
    assert found.make_room("192.0.2.1")


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv6_network_is_one_address(address: str, counted: str) -> None:
    assert counted_address(address) == counted
