"""Which routes are exported, and what becomes of them when others, or the master, take them away."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from ipvsw.linux.netlink import Destination
from ipvsw.routing.export import Exports, to_address, to_prefix


def packed(*addresses: str) -> list[bytes]:
    return [ip_address(one).packed for one in addresses]


def destinations(*texts: str) -> list[Destination]:
    networks = [ip_network(text) for text in texts]
    return [Destination(one.network_address.packed, one.prefixlen) for one in networks]


def served(*addresses: str) -> Exports:
    """Exports of which these addresses are in the kernel."""
    exports = Exports()
    exports.begin(packed(*addresses), [])
    exports.added(exports.next_due(100), [])
    assert not exports.due
    return exports


def test_an_address_that_means_nothing_elsewhere_is_not_exported() -> None:
    local = ["169.254.1.1", "127.0.0.1", "fe80::1", "::1", "224.0.0.1", "ff02::1", "0.0.0.0"]
    assert [to_address(one) for one in packed(*local)] == [None] * len(local)
    assert [str(to_address(one)) for one in packed("10.0.0.1", "fd00::1")] == ["10.0.0.1", "fd00::1"]
    assert [str(one) for one in destinations("10.0.0.0/24", "fd00::/64")] == ["10.0.0.0/24", "fd00::/64"]


def test_a_prefix_that_means_nothing_elsewhere_is_not_exported() -> None:
    local = ["fe80::/10", "169.254.0.0/16", "127.0.0.0/8", "ff00::/8", "0.0.0.0/0", "::/0", "10.0.0.1/32"]
    assert [to_prefix(ip_network(one)) for one in local] == [None] * len(local)
    assert [str(to_prefix(ip_network(one))) for one in ("10.0.0.0/8", "0.0.0.0/1")] == ["10.0.0.0/8", "0.0.0.0/1"]


def test_what_the_last_daemon_left_stays_if_it_is_owned_and_goes_when_that_is_known() -> None:
    exports = Exports()
    exports.begin(packed("10.0.0.1"), destinations("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"))
    assert (len(exports), exports.next_due(100)) == (1, [])
    exports.arrive(packed("10.0.0.2"))
    assert (len(exports), exports.next_due(100)) == (2, [])
    assert exports.take_stale() == destinations("10.0.0.3/32")
    assert exports.take_stale() == []


def test_an_address_that_leaves_takes_its_route_along_wherever_that_is() -> None:
    exports = served("10.0.0.1", "10.0.0.2")
    assert exports.leave(packed("10.0.0.1", "10.9.9.9")) == destinations("10.0.0.1/32")
    exports.compare(frozenset())  # others have removed the second one
    assert exports.leave(packed("10.0.0.2")) == []
    assert not exports.missing
    exports.arrive(packed("10.0.0.3"))
    tried = exports.next_due(100)
    assert exports.leave(packed("10.0.0.3")) == []
    assert exports.added(tried, []) == tried, "it left while it was added"
    assert len(exports) == 0


def test_what_others_remove_is_missing_until_it_is_put_back() -> None:
    exports = served("10.0.0.1", "10.0.0.2")
    exports.compare(frozenset(destinations("10.0.0.1/32")))
    assert exports.missing == {*destinations("10.0.0.2/32")}
    exports.arrive(packed("10.0.0.2"))
    assert not exports.due, "it is put back as what is missing is"
    assert exports.put_back(destinations("10.0.0.2/32")[0])
    assert (len(exports), exports.missing) == (2, set())
    assert not exports.put_back(destinations("10.0.0.9/32")[0])


def test_what_the_kernel_refuses_is_missing() -> None:
    exports = Exports()
    exports.begin(packed("10.0.0.1", "fd00::1"), [])
    tried = exports.next_due(100)
    assert exports.added(tried, destinations("fd00::1/128")) == []
    assert (len(exports), exports.missing) == (1, {*destinations("fd00::1/128")})


def test_prefixes_come_and_go_with_who_uses_them() -> None:
    exports = served()
    (prefix,) = destinations("10.0.0.0/24")
    assert exports.set_prefixes(frozenset({prefix})) == []
    assert exports.next_due(100) == [prefix]
    exports.added([prefix], [])
    assert exports.set_prefixes(frozenset({prefix})) == []
    assert exports.set_prefixes(frozenset()) == [prefix]


def test_a_master_that_was_down_has_every_route_again() -> None:
    exports = served("10.0.0.1", "10.0.0.2")
    exports.compare(frozenset(destinations("10.0.0.1/32")))
    exports.lose_all()
    assert (len(exports), exports.missing) == (0, set())
    assert {*exports.next_due(100)} == {*destinations("10.0.0.1/32", "10.0.0.2/32")}
