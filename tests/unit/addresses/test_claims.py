"""What a port may claim: the rules one by one, and that they hold in whatever order claims and rules come."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from ipvsw.addresses.claims import MAX_REFUSED, Admission, Change, Refused, Rule, claim_rule
from ipvsw.addresses.ownership import Bind, BindAll, Ownership, Unbind
from ipvsw.model import Address, PortConfig
from ipvsw.status import AddressSource, AddressState

NETLINK = AddressSource.NETLINK
NEAR, FAR, GATEWAY = (ip_address(text) for text in ("10.9.0.5", "203.0.113.9", "10.9.0.254"))
NEAR6, LOCAL6 = ip_address("fd09::5"), ip_address("fe80::1")
LAN, LAN6 = ip_network("10.9.0.0/16"), ip_network("fd09::/64")


class Side:
    """An `Admission` with the table that its changes make."""

    def __init__(self) -> None:
        self.ownership = Ownership("lan")
        self.rules = Admission("lan", self.ownership)
        self.table: dict[bytes, str] = {}
        for port in ("a", "b"):
            self.ownership.port_up(port)

    def take(self, changes: list[Change]) -> list[str]:
        """What was refused, in words."""
        for change in changes:
            if isinstance(change, Bind):
                self.table[change.address] = change.port
            elif isinstance(change, BindAll):
                self.table |= dict.fromkeys(change.addresses, change.port)
            elif isinstance(change, Unbind):
                del self.table[change.address]
        return [str(change) for change in changes if isinstance(change, Refused)]

    def claim(self, port: str, address: Address) -> list[str]:
        return self.take(self.rules.claim(port, address, 32, NETLINK))

    def owner(self, address: Address) -> str | None:
        return self.table.get(address.packed)


@pytest.fixture
def side() -> Side:
    return Side()


def test_without_a_rule_anything_may_be_claimed(side: Side) -> None:
    assert side.claim("a", FAR) == [] and side.owner(FAR) == "a"


def test_no_port_has_the_hosts_gateway(side: Side) -> None:
    side.claim("a", GATEWAY)
    refused = side.take(side.rules.set_host([LAN], [GATEWAY]))
    assert refused == ["10.9.0.254 is refused to port a: a route of the host uses it as its gateway"]
    assert side.owner(GATEWAY) is None
    side.take(side.rules.set_rule("a", Rule(pinned=frozenset({GATEWAY.packed}))))
    assert side.owner(GATEWAY) is None, "not even one that is pinned"
    side.take(side.rules.set_host([LAN], []))
    assert side.owner(GATEWAY) == "a", "the route is gone"


def test_what_is_pinned_is_nobody_elses(side: Side) -> None:
    side.claim("b", NEAR)
    side.take(side.rules.set_rule("a", Rule(pinned=frozenset({NEAR.packed}))))
    assert side.owner(NEAR) is None
    (status,) = side.rules.statuses("b")
    assert (status.state, status.reason) == (AddressState.REFUSED, "the configuration pins it to port a")
    assert side.claim("a", NEAR) == [] and side.owner(NEAR) == "a"
    side.take(side.ownership.forget("a"))
    side.take(side.rules.forget("a"))
    assert side.owner(NEAR) == "b", "port a is no part of the switch any more"


def test_a_list_of_prefixes(side: Side) -> None:
    side.rules.set_rule("a", Rule(prefixes=(ip_network("10.9.0.0/29"),)))
    assert side.claim("a", NEAR) == []
    assert side.claim("a", FAR) == [
        "203.0.113.9 is refused to port a: it is outside the prefixes that the port may claim"
    ]
    assert side.claim("a", LOCAL6) != [], "a port that may have no IPv6 address needs no link-local one"
    side.take(side.rules.set_rule("a", Rule(prefixes=(LAN6,))))
    assert side.owner(LOCAL6) == "a" and side.owner(NEAR) is None


def test_on_link_follows_the_master(side: Side) -> None:
    side.rules.set_rule("a", Rule(prefixes=(), on_link=True))
    side.take(side.rules.set_host([ip_network("192.0.2.0/24"), LAN6], []))
    assert side.claim("a", NEAR) != []
    side.take(side.rules.set_host([LAN, LAN6], []))
    assert side.owner(NEAR) == "a"
    assert side.claim("a", NEAR6) == [] and side.claim("a", LOCAL6) == [] and side.claim("a", FAR) != []


def test_without_a_prefix_of_the_family_anything_is_on_link(side: Side) -> None:
    side.rules.set_rule("a", Rule(prefixes=(), on_link=True))
    side.take(side.rules.set_host([LAN, ip_network("fe80::/64")], []))
    assert side.claim("a", NEAR6) == [] and side.claim("a", FAR) != []


def test_so_many_addresses(side: Side) -> None:
    side.rules.set_rule("a", Rule(max_addresses=2))
    wanted = {(ip_address(f"10.9.1.{k}"), 24): NETLINK for k in range(4)}
    assert len(side.take(side.rules.replace("a", wanted))) == 2 and len(side.table) == 2
    assert side.claim("a", ip_address("10.9.1.0")) == [], "one that it has"
    assert side.claim("a", FAR) == ["203.0.113.9 is refused to port a: the port may have 2 addresses at most"]


def test_refused_claims_are_reported_once_and_bounded(side: Side) -> None:
    side.rules.set_rule("a", Rule(prefixes=()))
    wanted = {(ip_address(0x0A0A0000 + k), 24): NETLINK for k in range(10 * MAX_REFUSED)}
    side.take(side.rules.replace("a", wanted))
    assert len(list(side.rules.statuses("a"))) == MAX_REFUSED
    known = dict(list(wanted.items())[:MAX_REFUSED])
    assert side.take(side.rules.replace("a", known)) == []


def test_what_may_be_diverted_from_the_host(side: Side) -> None:
    side.rules.set_host([LAN], [GATEWAY])
    side.rules.set_rule("a", Rule(pinned=frozenset({FAR.packed, GATEWAY.packed})))
    may = side.rules.may_divert
    assert may(NEAR.packed, "b") and may(FAR.packed, "a")
    assert not may(FAR.packed, "b") and not may(GATEWAY.packed, "a") and not may(NEAR6.packed, "a")


@pytest.mark.parametrize(("label", "far"), [("", True), ("cni:lan", True), ("user:1000", False), ("user:1:x", False)])
def test_what_a_user_pins_is_diverted_where_it_is_on_link_alone(side: Side, label: str, far: bool) -> None:
    """Whoever may attach a namespace chooses its addresses, and must not have the host's traffic to the world by it."""
    addresses = ip_interface("10.9.0.5/16"), ip_interface("203.0.113.9/32")
    side.rules.set_host([LAN], [])
    side.rules.set_rule("a", claim_rule(PortConfig(name="a", ifname="a", netns="", addresses=addresses, label=label)))
    assert side.claim("a", FAR) == [] == side.claim("a", NEAR)
    assert side.rules.may_divert(NEAR.packed, "a")
    assert side.rules.may_divert(FAR.packed, "a") is far


ADDRESSES = (NEAR, FAR, GATEWAY, NEAR6, LOCAL6)
PINNED = {"a": (NEAR.packed, FAR.packed), "b": (GATEWAY.packed, NEAR6.packed)}  # nothing twice, as in a configuration
RULES = st.builds(
    Rule,
    prefixes=st.none() | st.sampled_from([(), (LAN,), (LAN6, LAN)]),
    on_link=st.booleans(),
    max_addresses=st.none() | st.integers(0, 3),
)
PORTS, ADDRESS = st.sampled_from(("a", "b")), st.sampled_from(ADDRESSES)


class Model(RuleBasedStateMachine):
    """Whatever comes in whatever order: what stands is allowed, and what is allowed and wanted stands."""

    def __init__(self) -> None:
        super().__init__()
        self.side = Side()
        self.wanted: dict[str, set[Address]] = {"a": set(), "b": set()}
        self.gateways: frozenset[Address] = frozenset()
        self.on_link = False
        self.rules: dict[str, Rule] = {}

    @rule(port=PORTS, address=ADDRESS)
    def claim(self, port: str, address: Address) -> None:
        self.side.claim(port, address)
        self.wanted[port].add(address)

    @rule(port=PORTS, address=ADDRESS)
    def release(self, port: str, address: Address) -> None:
        self.side.take(self.side.rules.release(port, address, 32))
        self.wanted[port].discard(address)

    @rule(port=PORTS, addresses=st.frozensets(ADDRESS))
    def replace(self, port: str, addresses: frozenset[Address]) -> None:
        self.side.take(self.side.rules.replace(port, {(address, 32): NETLINK for address in addresses}))
        self.wanted[port] = set(addresses)

    @rule(port=PORTS, new=RULES, pins=st.booleans())
    def set_rule(self, port: str, new: Rule, pins: bool) -> None:
        new = replace(new, pinned=frozenset(PINNED[port] if pins else ()))
        self.side.take(self.side.rules.set_rule(port, new))
        self.rules[port] = new

    @rule(gateways=st.frozensets(ADDRESS, max_size=2), on_link=st.booleans())
    def set_host(self, gateways: frozenset[Address], on_link: bool) -> None:
        self.side.take(self.side.rules.set_host([LAN, LAN6] if on_link else [], gateways))
        self.gateways, self.on_link = gateways, on_link

    def allowed(self, port: str, address: Address) -> bool:
        """From the definition, without what is remembered."""
        mine = self.rules.get(port, Rule())
        pinned_to = [one for one, its in self.rules.items() if address.packed in its.pinned]
        if address in self.gateways or (pinned_to and port not in pinned_to):
            return False
        if port in pinned_to or mine.prefixes is None:
            return True
        if mine.on_link and not self.on_link:
            return True  # the master has no prefix that would tell
        networks = [*mine.prefixes, *([LAN, LAN6] if mine.on_link else [])]
        if any(one.version == address.version and address in one for one in networks):
            return True
        six = mine.on_link or any(len(one) == 16 for one in mine.pinned) or LAN6 in mine.prefixes
        return address == LOCAL6 and six

    @invariant()
    def what_stands_is_allowed(self) -> None:
        for packed, port in self.side.table.items():
            assert self.allowed(port, ip_address(packed)), (port, ip_address(packed))
        for port, mine in self.rules.items():
            if mine.max_addresses is not None:
                assert self.side.ownership.count(port) <= mine.max_addresses

    @invariant()
    def every_claim_is_somewhere(self) -> None:
        for port, wanted in self.wanted.items():
            refused = {status.address for status in self.side.rules.statuses(port)}
            for address in wanted:
                claimed = self.side.ownership.claims(port, address.packed)
                assert claimed != (str(address) in refused), (port, address)

    @invariant()
    def nothing_is_refused_without_a_reason(self) -> None:
        for port in self.wanted:
            assert all(status.reason for status in self.side.rules.statuses(port)), "it should stand"


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
