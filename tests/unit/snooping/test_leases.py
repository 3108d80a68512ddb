"""Whose answer it is, and what is leased to whom."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from ipvsw.snooping import dhcp4, dhcp6
from ipvsw.snooping.dhcp4 import DhcpMessage
from ipvsw.snooping.leases import LEASES, TRANSACTION_TIMEOUT, TRANSACTIONS, Answer, Lease, Leases
from tests.support.wire.dhcp import bootp, said6

ONE, TWO = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
A, B = "192.0.2.50", "192.0.2.51"


def said(*arguments: object, **more: object) -> DhcpMessage:
    found = dhcp4.read(bootp(*arguments, **more), 67 if arguments[0] == 1 else 68)
    assert found is not None
    return found


def v6(*arguments: object, **more: object) -> DhcpMessage:
    found = dhcp6.read(said6(*arguments, **more))
    assert found is not None
    return found


def lease(leases: Leases, port: str, address: str, *, xid: int = 1, now: float = 0.0, **more: object) -> Answer:
    """The two last steps of four."""
    leases.on_client(port, said(1, kind=3, xid=xid, **more), now)
    return leases.on_server(said(2, kind=5, xid=xid, yiaddr=address, seconds=60, server="192.0.2.1", **more), now)


def held(leases: Leases) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in leases.all():
        found.setdefault(one.port, set()).add(str(one.address))
    return found


def test_a_lease_from_question_to_end() -> None:
    leases = Leases()
    leases.on_client("vm1", said(1, kind=1, xid=9, chaddr=ONE, hostname=b"one"), 10.0)
    assert leases.on_server(said(2, kind=2, xid=9, chaddr=ONE, yiaddr=A, seconds=60), 10.1) == Answer("vm1")
    leases.on_client("vm1", said(1, kind=3, xid=9, chaddr=ONE, hostname=b"one"), 10.2)
    answer = leases.on_server(said(2, kind=5, xid=9, chaddr=ONE, yiaddr=A, seconds=60, server="192.0.2.1"), 10.3)
    wanted = Lease(
        port="vm1",
        address=IPv4Address(A),
        until=70.3,
        client=b"",
        chaddr=ONE,
        server="192.0.2.1",
        hostname="one",
    )
    assert answer == Answer("vm1", (wanted,))
    assert leases.next_end() == 70.3
    assert leases.expire(70.2) == ()
    assert leases.expire(70.3) == (wanted,)
    assert leases.next_end() is None and not held(leases)


def test_two_guests_with_the_same_number() -> None:
    leases = Leases()
    leases.on_client("vm1", said(1, kind=1, xid=5, chaddr=ONE), 0)
    leases.on_client("vm2", said(1, kind=1, xid=5, chaddr=TWO), 0)
    assert leases.on_server(said(2, kind=2, xid=5, chaddr=TWO), 1).port == "vm2"
    assert leases.on_server(said(2, kind=2, xid=5, chaddr=ONE), 1).port == "vm1"


def test_two_guests_with_the_same_number_and_the_masters_address() -> None:
    """Then the client identifier tells, if the server repeats it; otherwise the answer is for both."""
    leases = Leases()
    leases.on_client("ns1", said(1, kind=1, xid=5, client=b"one"), 0)
    leases.on_client("ns2", said(1, kind=1, xid=5, client=b"two"), 0)
    assert leases.on_server(said(2, kind=2, xid=5, client=b"two"), 1).port == "ns2"
    assert leases.on_server(said(2, kind=2, xid=5), 1).port is None
    assert leases.on_server(said(2, kind=5, xid=5, yiaddr=A, seconds=60), 1) == Answer()


def test_an_answer_that_nobody_waits_for() -> None:
    leases = Leases()
    leases.on_client("vm1", said(1, kind=1, xid=5), 0)
    assert leases.on_server(said(2, kind=2, xid=6), 1) == Answer()
    assert leases.on_server(said(2, kind=2, xid=5), TRANSACTION_TIMEOUT) == Answer()
    assert leases.on_server(v6(7, xid=5), 1) == Answer()


def test_a_port_cannot_answer_itself() -> None:
    leases = Leases()
    leases.on_client("vm1", said(1, kind=3), 0)
    assert leases.on_server(said(2, kind=5, yiaddr=A, seconds=60), 0, sender="vm1") == Answer()
    assert leases.on_server(said(2, kind=5, yiaddr=A, seconds=60), 0, sender="vm2").port == "vm1"


def test_a_renewal_moves_the_end() -> None:
    leases = Leases()
    lease(leases, "vm1", A)
    answer = lease(leases, "vm1", A, xid=2, now=30.0)
    assert answer.granted[0].until == 90.0 and not answer.ended
    assert leases.expire(60.0) == ()


def test_another_address_for_the_same_client() -> None:
    leases = Leases()
    lease(leases, "vm1", A)
    assert [str(one.address) for one in lease(leases, "vm1", B, xid=2).ended] == [A]
    lease(leases, "vm1", A, xid=3, client=b"another")
    assert held(leases) == {"vm1": {A, B}}


def test_a_refusal_ends_that_clients_lease() -> None:
    leases = Leases()
    lease(leases, "vm1", A)
    lease(leases, "vm1", B, xid=2, client=b"another")
    leases.on_client("vm1", said(1, kind=3, xid=3), 5)
    answer = leases.on_server(said(2, kind=6, xid=3), 5)
    assert answer.port == "vm1" and [str(one.address) for one in answer.ended] == [A]
    assert held(leases) == {"vm1": {B}}


def test_release_and_decline() -> None:
    leases = Leases()
    lease(leases, "vm1", A)
    assert leases.on_client("vm2", said(1, kind=7, xid=9, ciaddr=A), 5) == ()  # not its own
    assert [str(one.address) for one in leases.on_client("vm1", said(1, kind=7, ciaddr=A), 5)] == [A]
    lease(leases, "vm1", B)
    assert [str(one.address) for one in leases.on_client("vm1", said(1, kind=4, requested=B), 5)] == [B]
    assert not held(leases)


def test_ipv6() -> None:
    leases = Leases()
    leases.on_client("vm1", v6(3), 0)
    leases.on_client("vm2", v6(3, client=b"\0\3\0\1another"), 0)
    answer = leases.on_server(v6(7, addresses={"2001:db8::1": 60, "2001:db8::2": 120}), 0)
    assert answer.port == "vm1" and {one.until for one in answer.granted} == {60.0, 120.0}
    leases.on_client("vm1", v6(5, xid=2), 30)
    answer = leases.on_server(v6(7, xid=2, addresses={"2001:db8::1": 60, "2001:db8::2": 0}), 30)
    assert [one.address for one in answer.ended] == [IPv6Address("2001:db8::2")]
    assert held(leases) == {"vm1": {"2001:db8::1"}}
    assert len(leases.on_client("vm1", v6(8, xid=3, addresses={"2001:db8::1": 0}), 40)) == 1


def test_a_port_that_is_forgotten() -> None:
    leases = Leases()
    lease(leases, "vm1", A)
    assert len(leases.forget("vm1")) == 1 and leases.forget("vm1") == ()
    assert leases.on_server(said(2, kind=2), 1) == Answer()


def test_nobody_fills_the_memory() -> None:
    leases = Leases()
    for xid in range(200):
        leases.on_client("vm1", said(1, kind=1, xid=xid), 0)
    assert leases.on_server(said(2, kind=2, xid=199 - TRANSACTIONS), 1).port is None
    assert leases.on_server(said(2, kind=2, xid=200 - TRANSACTIONS), 1).port == "vm1"
    for number in range(200):
        lease(leases, "vm1", f"192.0.2.{number}", xid=number, client=bytes([number]))
    assert len(list(leases.all())) == LEASES


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["vm1", "vm2"]),
            st.sampled_from([1, 3, 4, 7, 8]),
            st.integers(1, 3),
            st.sampled_from([ONE, TWO]),
            st.sampled_from([A, B]),
            st.sampled_from([2, 5, 6, 0]),
        ),
        max_size=40,
    )
)
def test_whatever_is_said_the_memory_agrees_with_what_is_told(
    steps: list[tuple[str, int, int, bytes, str, int]],
) -> None:
    """A caller that follows `granted` and `ended` knows what `all` has."""
    leases, known = Leases(), set()
    for now, (port, kind, xid, chaddr, address, reply) in enumerate(steps):
        ended = leases.on_client(
            port, said(1, kind=kind, xid=xid, chaddr=chaddr, ciaddr=address, requested=address), now
        )
        answer = leases.on_server(said(2, kind=reply, xid=xid, chaddr=chaddr, yiaddr=address, seconds=7), now)
        over = leases.expire(now)
        known -= {(one.port, one.address) for one in ended}
        known |= {(one.port, one.address) for one in answer.granted}
        known -= {(one.port, one.address) for one in (*answer.ended, *over)}
        assert known == {(one.port, one.address) for one in leases.all()}
