"""The one way to change a switch's data plane: edits of the datapath, and what the shim must know of them.

Callers open a batch, edit the datapath that it yields, and everything is committed together when the outermost batch
ends. An address is added to the shim's map first and bound in the datapath second: as soon as a guard lets a frame
from it pass, the reply comes here and not to the host. It is removed in the same order, so that the shim keeps nothing
from the host that the datapath doesn't deliver; mode and host interface are set in the opposite one. Of ports
whose unicast the kernel forwards the shim learns at once: what it doesn't decide the datapath does.

Nobody else calls `Datapath.commit`, nor changes the shim's settings and addresses.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from ipaddress import ip_address
from itertools import islice
from typing import NamedTuple

from ipvsw._fast import ACCESS, MODES, Datapath
from ipvsw.linux.bpf import Shim
from ipvsw.linux.fastports import THE_MASTER, FastCounts, FastDevice, FastFlag

log = logging.getLogger("ipvsw")

COMMIT_SIZE = 8192  # addresses in one commit: as many edits and keys must be in memory at once


class Former(NamedTuple):
    """Nobody's, but this port's until now."""

    port: int


Owner = int | Former | None
"""Of an address: a port's number, or no port."""


class Changes:
    """One switch's; addresses are 4 or 16 bytes.

    `bound(port, addresses, moved)` is called after `addresses` were bound to that port number; `moved` are those that
    were another port's just before. `changed` is called when the table's addresses have changed.
    """

    def __init__(
        self,
        switch: str,
        datapath: Datapath,
        shim: Shim,
        *,
        bound: Callable[[int, list[bytes], list[bytes]], None] = lambda port, addresses, moved: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.datapath = datapath  # for queries, and for what takes effect without a commit
        self.diverts: Callable[[bytes], bool] = lambda address: False  # whether the host's traffic to it is its port's
        # For routing daemons: called with addresses before the table lets go of them, and after they are in it.
        self.leaving: Callable[[Collection[bytes]], None] = lambda addresses: None
        self.arriving: Callable[[Collection[bytes]], None] = lambda addresses: None
        self.uplink = 0  # the master's index, 0 while there is none
        self._switch = switch
        self._shim = shim
        self._on_bound = bound
        self._on_changed = changed
        self._depth = 0
        self._owners: dict[bytes, Owner] = {}  # who is to have which address
        self._former: dict[bytes, int] = {}  # addresses with a former owner, as the datapath has them
        self._stolen: set[bytes] = set()
        self._diverting = False  # whether the host's own traffic may go to ports at all, if only errors and replies
        self._diverted: set[bytes] = set()  # of the stolen ones
        self._host: frozenset[bytes] = frozenset()  # the master's own addresses as the datapath has them
        self._wanted_host = self._host
        self._gateways: frozenset[bytes] = frozenset()  # of the host's routes, as the datapath has them
        self._wanted_gateways = self._gateways
        self._switched: Mapping[bytes, bytes] = {}  # in l3 and l3s: groups whose packets are switched, and their MACs
        self._vlans: frozenset[int] = frozenset()  # with a device of their own on the master
        self._detaching: list[tuple[int, Callable[[], None]]] = []
        self._fast: dict[int, FastDevice] = {}  # by the port's number
        self._fast_owned: dict[bytes, int] = {}  # address -> the host end of such a port, whose it is

    @contextlib.contextmanager
    def batch(self) -> Iterator[Datapath]:
        """What is edited within takes effect when the outermost batch has ended: at one commit, or in parts if it
        concerns thousands of addresses. Errors: OSError, see `Datapath.commit`."""
        self._depth += 1
        try:
            yield self.datapath
        finally:
            self._depth -= 1
            if not self._depth:
                self._commit()

    def beat(self) -> None:
        """Outside batches: returns when every worker has made a round. Not at all if one hangs."""
        self.datapath.commit(beat=True)

    @property
    def stolen(self) -> Set[bytes]:
        """The addresses whose frames the shim keeps from the host: those in the table. Not to be kept."""
        return self._stolen

    @property
    def diverted(self) -> Set[bytes]:
        """Those of them for which the host's own traffic is the port's too. Not to be kept."""
        return self._diverted

    @property
    def switched_macs(self) -> frozenset[bytes] | None:
        """Of the groups that ports may listen to; None: all."""
        return frozenset(self._switched.values()) or None

    def switched_groups(self, macs: Set[bytes]) -> frozenset[bytes]:
        """In l3 and l3s: those of the switched groups that have these MAC addresses."""
        return frozenset(group for group, mac in self._switched.items() if mac in macs)

    def review_diversion(self, addresses: Iterable[bytes]) -> None:
        """`diverts` may say something else of these addresses than before."""
        if self._divert(list(addresses)):
            self._on_changed()

    # ------------------------------------------------------------------------ edits that concern the shim as well

    def bind(self, addresses: Iterable[bytes], port: int) -> None:
        """Within a batch: frames for these addresses go to this port, whichever had them."""
        self._owners.update(dict.fromkeys(addresses, port))

    def unbind(self, address: bytes, former: int | None = None) -> None:
        """Within a batch: frames for this address go to the host. What the port `former` has sent from it passes the
        guards until `forget_former`, unless somebody else gets the address."""
        self._owners[address] = None if former is None else Former(former)

    def forget_former(self, addresses: Iterable[bytes]) -> None:
        """Within a batch: they are nobody's, for the guards too. Nothing happens to those that are."""
        for address in addresses:
            if self._former.pop(address, None) is not None:
                self.datapath.unbind(address)

    def set_host_addresses(self, addresses: frozenset[bytes]) -> None:
        """Within a batch: all that the master has itself."""
        self._wanted_host = addresses

    def set_gateways(self, addresses: frozenset[bytes]) -> None:
        """Within a batch: every address that a route of the host has as its gateway. None of them is a port's."""
        self._wanted_gateways = addresses

    def detach_port(self, port: int, before: Callable[[], None]) -> None:
        """Within a batch: the port goes when no address is bound to it any more; `before` is called just before."""
        self._detaching.append((port, before))

    def set_mode(self, mode: int, flag: int, access: int, groups: Mapping[bytes, bytes]) -> None:
        """Numbers of `_fast.MODES`, `FLAGS` and `ACCESS`. `groups` are those, each with its MAC address, whose packets
        are switched in l3 and l3s."""
        host_access = access != ACCESS["none"]
        diverting = host_access or mode == MODES["l3s"]
        self._shim.stop_deciding()
        with self.batch() as datapath:
            datapath.set_mode(mode, flag, access, sorted(groups))
        self._shim.set_groups(groups.keys())
        self._shim.set_mode(mode)
        self._shim.set_fast_rules(mode, flag, host_access)
        self._switched = groups if mode != MODES["l2"] else {}
        if diverting != self._diverting:
            self._diverting = diverting
            self.review_diversion(self._stolen)

    def set_vlans(self, vlans: frozenset[int]) -> None:
        """All that have a device of their own on the master; numbers as for `Datapath.set_vlans`. A frame that the
        datapath leaves to the host is never kept from it."""
        if vlans == self._vlans:
            return
        self._shim.set_vlans(self._vlans | vlans)
        with self.batch() as datapath:
            datapath.set_vlans(vlans)
        self._shim.set_vlans(vlans)
        self._vlans = vlans

    def attach_host(self, fd: int, ifindex: int) -> None:
        """The host's interface to the ports: its TAP's descriptor, and its index beside the master."""
        with self.batch() as datapath:
            datapath.attach_host(fd)
        self._shim.set_host_ifindex(ifindex)

    def detach_host(self) -> None:
        self._shim.set_host_ifindex(0)
        with self.batch() as datapath:
            datapath.detach_host()

    # ------------------------------------------------------------------------ what the kernel forwards

    def set_uplink(self, ifindex: int) -> None:
        """The master's index, 0 while there is none."""
        self.uplink = ifindex
        self._shim.set_master_ifindex(ifindex)

    def set_resuming(self, on: bool) -> None:
        """Whether the last daemon's programs on the master go on for now."""
        self._shim.set_resuming(on)

    def put_devices(self, device: FastDevice, mtu: int, *, adopted: bool) -> bool:
        """The programs on these devices have the daemon decide everything, until the port is `set_fast`. `adopted`: the
        last daemon had them. Whether their counters go on."""
        if not adopted:
            self._shim.fast.remove(device)
        goes_on = self._shim.fast.is_counted(device.end)
        self._shim.fast.put(device, mtu, FastFlag(0))
        return goes_on

    def drop_devices(self, device: FastDevice) -> None:
        """They are gone, and so is the port that was `set_fast`."""
        self._shim.fast.remove(device)

    def set_fast(self, port: int, device: FastDevice, mtu: int, flags: FastFlag) -> None:
        """What of the port's unicast the kernel may forward, from now on."""
        self._fast[port] = device
        self._shim.fast.put(device, mtu, flags)

    def fast_counts(self, port: int | None) -> FastCounts:
        """What it has forwarded from and to the port, None: from and to the master."""
        if port is None:
            return self._shim.fast.counts(THE_MASTER)
        return self._shim.fast.counts(self._fast[port].end) if port in self._fast else FastCounts()

    def all_fast_counts(self) -> dict[int, FastCounts]:
        """The same of all ports that have counted anything, at once."""
        found = self._shim.fast.all_counts() if self._fast else {}
        return {port: found[device.end] for port, device in self._fast.items() if device.end in found}

    @property
    def fast(self) -> Mapping[int, FastDevice]:
        """The ports whose unicast the kernel may forward, by number. Not to be kept."""
        return self._fast

    @property
    def counts_go_on(self) -> bool:
        """Whether the master's counters are the last daemon's."""
        return self._shim.fast.goes_on

    # ------------------------------------------------------------------------ commit

    def _commit(self) -> None:
        owners, self._owners = self._owners, {}
        host, self._host = self._host, self._wanted_host
        gateways, self._gateways = self._gateways, self._wanted_gateways
        for address in (host - self._host) | (gateways - self._gateways):
            self.datapath.unbind(address)
        if owners:
            with contextlib.suppress(OSError):  # `_steal` reports it for the addresses that it concerns
                self._shim.expect(len(owners) - sum(map(self._stolen.__contains__, owners)))
        addresses, owning = iter(owners), iter(owners.values())
        part = list(islice(addresses, COMMIT_SIZE))
        while len(part) == COMMIT_SIZE:
            self._commit_part(part, list(islice(owning, COMMIT_SIZE)), ())
            part = list(islice(addresses, COMMIT_SIZE))
        self._commit_part(part, list(owning), self._host - host)
        if self._gateways != gateways:
            for address in self._gateways - gateways:
                self._former.pop(address, None)
                self.datapath.bind_gateway(address)
            self.datapath.commit()
        self._detach_ports()
        if owners:
            self._on_changed()

    def _commit_part(self, addresses: list[bytes], owners: list[Owner], host: Iterable[bytes]) -> None:
        """`owners` has that of each address; `host` are those that the master has from now on."""
        bound, freed = _by_owner(addresses, owners)
        if freed:
            self.leaving(freed)
        self._unsteal(list(freed))
        for address, former in freed.items():
            self._free(address, former)
        for port, its in bound.items():
            self.datapath.bind_all(its, port)
            if self._former:
                for address in its:
                    self._former.pop(address, None)
        for address in host:
            self._former.pop(address, None)
            self.datapath.bind_host(address)
        moved = {port: [one for one in its if one in self._stolen] for port, its in bound.items()}
        for port, its in bound.items():
            self._note_owner(its, self._fast.get(port), moved[port])
            self._steal([one for one in its if one not in self._stolen] if moved[port] else its)
        try:
            self.datapath.commit()
        except BaseException:
            for port, its in bound.items():
                self._unsteal(list(set(its).difference(moved[port])))
            raise
        for port, its in bound.items():
            self._divert(its)
            self.arriving(its)
            self._on_bound(port, its, moved[port])

    def _free(self, address: bytes, former: int | None) -> None:
        """The address is no port's."""
        if former is None:
            self._former.pop(address, None)
            self.datapath.unbind(address)
        else:
            self._former[address] = former
            self.datapath.bind_former(address, former)

    def _detach_ports(self) -> None:
        detaching, self._detaching = self._detaching, []
        leaving = {port for port, _ in detaching}
        self.forget_former([address for address, port in self._former.items() if port in leaving])
        for port, before in detaching:
            before()
            self._fast.pop(port, None)
            self.datapath.detach_port(port)
        if detaching:
            self.datapath.commit()

    def _note_owner(self, addresses: list[bytes], device: FastDevice | None, moved: list[bytes]) -> None:
        """These addresses are a port's; those that another had, `moved`, may be known to the shim as that one's."""
        if device is not None:
            self._fast_owned.update(dict.fromkeys(addresses, device.end))
            again = moved
        else:
            again = [one for one in moved if self._fast_owned.pop(one, None) is not None]
        for diverted in (True, False):
            if its := [one for one in again if (one in self._diverted) is diverted]:
                self._shim.assign(its, owner=device.end if device is not None else 0, diverted=diverted)

    def _steal(self, addresses: list[bytes]) -> None:
        """All of them are of one port."""
        if not addresses:
            return
        try:
            self._shim.add(addresses, self._fast_owned.get(addresses[0], 0))
        except OSError as error:
            if len(addresses) > 1:
                for address in addresses:
                    self._steal([address])
            else:
                what = ip_address(addresses[0])
                log.error("switch %s: the host still receives frames for %s: %s", self._switch, what, error)
        else:
            self._stolen.update(addresses)

    def _divert(self, addresses: list[bytes]) -> bool:
        """Of addresses that are stolen: have the host's own traffic to them go where it should. Whether any went
        elsewhere before."""
        if not self._diverting and not self._diverted:
            return False
        changed = False
        wanted = {one for one in addresses if one in self._stolen and self.diverts(one)} if self._diverting else set()
        for on, its in ((True, wanted - self._diverted), (False, self._diverted.intersection(addresses) - wanted)):
            if its:
                for owner, some in self._by_fast_owner(its):
                    self._shim.assign(some, owner=owner, diverted=on)
                (self._diverted.update if on else self._diverted.difference_update)(its)
                changed = True
        return changed

    def _by_fast_owner(self, addresses: Set[bytes]) -> Iterator[tuple[int, list[bytes]]]:
        """The addresses of each port that the kernel forwards to, by its host end, and of all others, by 0."""
        owners: dict[int, list[bytes]] = {}
        for address in addresses:
            owners.setdefault(self._fast_owned.get(address, 0), []).append(address)
        yield from owners.items()

    def _unsteal(self, addresses: list[bytes]) -> None:
        stolen = [address for address in addresses if address in self._stolen]
        if stolen:
            self._stolen.difference_update(stolen)
            self._diverted.difference_update(stolen)
            self._shim.remove(stolen)
            if self._fast_owned:
                for address in stolen:
                    self._fast_owned.pop(address, None)


def _by_owner(addresses: list[bytes], owners: list[Owner]) -> tuple[dict[int, list[bytes]], dict[bytes, int | None]]:
    """Each port's addresses, and those that no port has, with their former owners. Mostly one port has all."""
    bound: dict[int, list[bytes]] = {}
    freed: dict[bytes, int | None] = {}
    first = next(iter(owners), None)
    if isinstance(first, int) and owners.count(first) == len(owners):
        return {first: addresses}, {}
    for address, owner in zip(addresses, owners, strict=True):
        if isinstance(owner, int):
            bound.setdefault(owner, []).append(address)
        else:
            freed[address] = None if owner is None else owner.port
    return bound, freed
