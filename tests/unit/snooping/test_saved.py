"""What is known of virtual machines is the same for the next daemon."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec

from ipvsw.snooping.learned import Learning
from ipvsw.snooping.leases import Lease, Leases
from ipvsw.snooping.saved import Snooped, save
from ipvsw.status import AddressSource

FOUR, SIX = ip_address("10.0.0.7"), ip_address("fd00::7")
LEASE = Lease(
    port="vm1",
    address=FOUR,
    until=500.5,
    client=b"\x01\xff",
    chaddr=b"\2" * 6,
    server="10.0.0.1",
    hostname="\xfcber",
    ends=1.7e9,
)
FOREVER = Lease(port="vm2", address=SIX, until=None, client=b"", chaddr=b"", server="", hostname="")


def passed_on(learnings: dict[str, Learning], leases: Leases) -> Snooped:
    return msgspec.json.decode(msgspec.json.encode(save(learnings, leases)), type=Snooped)


def test_addresses_keep_their_source_and_their_age() -> None:
    learning = Learning(4)
    learning.learn(FOUR, AddressSource.DHCP, 100.25)
    learning.learn(SIX, AddressSource.ND, 200.5)
    addresses, leases = passed_on({"vm1": learning}, Leases()).of_port("vm1")
    assert [(one.address, one.source, one.used) for one in addresses] == [
        ("10.0.0.7", AddressSource.DHCP, 100.25),
        ("fd00::7", AddressSource.ND, 200.5),
    ]
    assert leases == []


def test_leases_are_the_same_and_belong_to_the_same_ports() -> None:
    leases = Leases()
    for lease in (LEASE, FOREVER):
        leases.restore(lease)
    snooped = passed_on({}, leases)
    assert snooped.of_port("vm1") == ([], [LEASE])
    assert snooped.of_port("vm2") == ([], [FOREVER])
    assert snooped.of_port("vm3") == ([], [])


def test_a_lease_that_was_passed_on_ends_when_it_would_have() -> None:
    leases = Leases()
    leases.restore(LEASE)
    assert leases.next_end() == 500.5
    assert leases.expire(500.0) == ()
    assert leases.expire(500.5) == (LEASE,)
