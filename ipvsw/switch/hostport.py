"""The host's own interface to the ports: a TAP in the master's namespace.

In l2 it has no routes: the shim redirects to it what the host sends to ports on the master. In l3 a routing table of
its own has a route through it to each port's address that the host's traffic may be diverted to, and policy rules say
which packets use that table: the host's own, if the host may reach ports, and in l3s those that arrive on the master,
which thus pass the host's PREROUTING and FORWARD. In l3s the host's own use it in any case: what the host answers in
another's name, as its REJECT does, must reach the port; without host_access a BPF program on the TAP drops the rest.
The ports' other addresses are in a second table, for what arrives on the master alone: the host's traffic to them
follows the host's own routes. A host that didn't forward before goes on forwarding nothing else.

The next daemon goes on with the device and the routes; the kernel removes these with the TAP. Every start replaces the
rules and knows from them what the host's forwarding was. While the daemon runs, `wanted` and `seen` say what others
have changed, and `mend` puts it back.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from msgspec import Struct

from ipvsw.changes import Changes
from ipvsw.linux.devices.tap import QUEUE, Tap, adopt_tap, open_tap
from ipvsw.linux.lasting.fdstore import close_fds
from ipvsw.linux.namespaces import identity
from ipvsw.linux.netlink import TABLES, WIRE_TABLES, Handle, Link, RoutesChanged, Rule
from ipvsw.linux.repair import Part
from ipvsw.linux.runtime import Runtime
from ipvsw.model import Address
from ipvsw.status import Subject

log = logging.getLogger("ipvsw")

NAME_MAX = 15  # bytes; IFNAMSIZ less the closing NUL

# Preferences of our policy rules: after the local table, before those that administrators usually choose.
PREF_SKIP = 117  # ports' own packets, which name the master as output device, skip the table
PREF_LOOKUP = 118  # look the destination up among the ports' addresses
PREF_END = 119  # where PREF_SKIP goes to

UNKNOWN = IPv4Address(0)  # the source of a route that the last daemon has left

HostRoute = tuple[Address, int]  # a port's address, and the table that has the route


class HostLeft(Struct, frozen=True):
    """The interface as the last daemon had it when it ended: its TAP's descriptor, and its index."""

    fd: int
    index: int


class HostPortConfig(Struct, frozen=True):
    """What the interface is for."""

    wanted: bool = False
    routes: bool = False  # modes l3 and l3s
    forward: bool = False  # mode l3s
    host_access: bool = False  # the host may reach ports


class HostPort:
    """One master's. Its calls must not overlap. `place` is a function that opens the master's namespace."""

    def __init__(
        self, runtime: Runtime, changes: Changes, master: str, held_name: str, left: HostLeft | None, errors_fd: int
    ) -> None:
        """`held_name` is that of its descriptor, see `FdStore`; `errors_fd` as in `Shim`."""
        self._errors_fd = errors_fd
        self.name = f"ipvsw-{master}"
        self._held_name = held_name
        self._left = left
        self._runtime = runtime
        self._changes = changes
        self._tap: Tap | None = None
        self._index = 0
        self._pushed: Link | None = None  # the master as the interface knows it
        self._routes: dict[HostRoute, Address | None] = {}  # the source that the host uses towards it
        self._missing: set[HostRoute] = set()  # of them
        self._rules: set[Rule] = set()
        self._former: dict[int, dict[str, str]] = {4: {}, 6: {}}  # what sysctls were before, by IP version
        self._sysctls: dict[str, str] = {}  # what they are now
        self.is_lost = False  # the device is gone: to be closed, and made again by `adapt`
        self._applied: HostPortConfig | None = None  # what rules and sysctls are set for

    async def adapt(
        self,
        place: Callable[[], int | None],
        master: Link,
        config: HostPortConfig,
        diverted: frozenset[Address],
        others: frozenset[Address],
        sources: dict[int, Address | None],
        *,
        keeps_routes: bool = False,
    ) -> dict[Part, str]:
        """Make, change or close the interface. `diverted` are the ports' addresses that the host itself is to have
        routes to, `others` those that only what arrives on the master is to; `sources` the master's own by IP version.
        With `keeps_routes` there are more, of ports that are not there again yet: no route goes. The routes that could
        not be set, and why. Errors: OSError."""
        if not config.wanted:
            await self.close(place)
            await self._clean(place, master, config)
            return {}
        if self._tap is None:
            if len(os.fsencode(self.name)) > NAME_MAX:
                self.name = f"ipvsw-{master.index}"  # cut off it might be another master's
            if not await self._adopt(place):
                await self._open(place, master)
        tables = dict.fromkeys(diverted, TABLES + master.index) if config.routes else {}
        tables |= dict.fromkeys(others, WIRE_TABLES + master.index) if config.forward else {}
        had, self._routes = (
            self._routes,
            {
                (address, table): sources.get(address.version)
                for address, table in tables.items()
                if not address.is_link_local
            },
        )
        if keeps_routes:
            self._routes = had | self._routes
        pushed, self._pushed = self._pushed, master
        applied, self._applied = self._applied, config
        if (pushed, had, applied) == (master, self._routes, config):
            return {}
        old = had.keys() - self._routes.keys()
        new = {route for route, source in self._routes.items() if route not in had or had[route] != source}
        self._missing = (self._missing | new) - old

        def push(handle: Handle) -> dict[Part, str]:
            if pushed != master:
                handle.set_link(self._index, mac=master.mac, mtu=master.mtu)
            for address, table in old:
                with contextlib.suppress(OSError):
                    handle.delete_host_route(self._index, table, address)
            failed = {}
            for route in new:
                try:
                    self._add_route(handle, route)
                except OSError as error:
                    failed[_route_part(route)] = error.strerror or str(error)
            if applied != config:
                self._set_policy(handle, master, config)
            return failed

        return await self._runtime.run_in_netns(place, push) or {}

    def _add_route(self, handle: Handle, route: HostRoute) -> None:
        address, table = route
        handle.add_host_route(self._index, table, address, self._routes.get(route))
        self._missing.discard(route)

    def _set_policy(self, handle: Handle, master: Link, config: HostPortConfig) -> None:
        """Our policy rules and forwarding sysctls as `config` needs them, none with the default one."""
        present, wanted = handle.rules(), set()
        table = TABLES + master.index
        for version in (4, 6):
            nothing_else = Rule(version, PREF_END, master.name)
            switch = _forwarding(version, master.name)
            if nothing_else in present:  # maybe from an earlier run that was killed before it restored the sysctl
                self._former[version].setdefault(switch, "0")
            forward = config.forward and (version == 4 or handle.sysctl("net/ipv6/conf/all/forwarding") != "1")
            self._set_sysctls(handle, version, [switch, _forwarding(version, self.name)] if forward else [])
            if config.routes and (config.host_access or config.forward):
                wanted.add(Rule(version, PREF_SKIP, "lo", oif=master.name, go_to=PREF_END))
                wanted.add(Rule(version, PREF_LOOKUP, "lo", table))
                wanted.add(Rule(version, PREF_END, master.name, go_to=PREF_END))
            if config.forward:
                wanted.add(Rule(version, PREF_LOOKUP, master.name, table))
                wanted.add(Rule(version, PREF_LOOKUP, master.name, WIRE_TABLES + master.index))
                if self._former[version].get(switch) == "0":
                    wanted.add(nothing_else)
        self._rules = wanted
        if self._tap is not None:
            self._tap.filter(self._errors_fd if config.forward and not config.host_access else -1)
        handle.set_rules(wanted, master.name, table)

    async def _open(self, place: Callable[[], int | None], master: Link) -> None:
        def create(handle: Handle, fd: int) -> None:
            self._tap = open_tap()
            link = handle.link(self._tap.name)
            assert link is not None
            handle.set_link(
                link.index,
                mac=master.mac,
                mtu=master.mtu,
                queue=QUEUE,
                noarp=True,
                name=self.name,
                netns_fd=fd,
                alias="ipvsw host",
            )

        def install(handle: Handle) -> int:
            self._quieten(handle)
            link = handle.link(self.name)
            assert link is not None
            handle.set_link(link.index, up=True)
            return link.index

        fd = place()
        if fd is None:
            return
        try:
            await self._runtime.netlink.run(None, lambda handle: create(handle, fd))
            self._index = await self._runtime.netlink.run(fd, install)
        except BaseException:
            await self._drop_tap()
            raise
        finally:
            os.close(fd)
        self._attach(frozenset())

    async def _adopt(self, place: Callable[[], int | None]) -> bool:
        """Go on with the device that the last daemon had; False if there is none, or if it can't be kept."""
        left, self._left = self._left, None
        if left is None:
            return False

        def look(handle: Handle) -> frozenset[HostRoute]:
            link = handle.link_at(left.index)
            if link is None or link.name != self.name:
                raise OSError(errno.ENODEV, "its device is not there any more")
            self._quieten(handle)
            return handle.host_routes(left.index)

        try:
            self._tap, self._index = adopt_tap([left.fd]), left.index
            routes = await self._runtime.run_in_netns(lambda: self._open_own_place(place), look)
            if routes is None:
                raise OSError(errno.ESTALE, "its device is not in the master's namespace")
        except OSError as error:
            log.warning("%s can't be kept: %s", self.name, error.strerror or error)
            await self._drop_tap()
            return False
        self._attach(routes)
        return True

    def _open_own_place(self, place: Callable[[], int | None]) -> int | None:
        """The namespace that the TAP is in, None if that is not the master's."""
        assert self._tap is not None
        own = self._tap.open_namespace()
        fd = place()
        if fd is not None and identity(fd) == identity(own):
            os.close(own)
            return fd
        close_fds([own, *([] if fd is None else [fd])])
        return None

    def _attach(self, routes: frozenset[HostRoute]) -> None:
        """`routes` are there already."""
        assert self._tap is not None
        self._pushed, self._routes, self._missing, self._applied = None, dict.fromkeys(routes, UNKNOWN), set(), None
        self._changes.attach_host(self._tap.fd, self._index)
        if self._runtime.store.held.get(self._held_name) != self._tap.fd:
            self._runtime.store.put(self._held_name, self._tap.fd)
        self._runtime.note_change()

    @property
    def left(self) -> HostLeft | None:
        """What a successor would find if the daemon ended now."""
        return None if self._tap is None or not self._index else HostLeft(self._tap.fd, self._index)

    def _quieten(self, handle: Handle) -> None:
        for name, value in (("addr_gen_mode", "1"), ("accept_ra", "0")):
            self._set_sysctl(handle, f"net/ipv6/conf/{self.name}/{name}", value)

    def _set_sysctls(self, handle: Handle, version: int, wanted: list[str]) -> None:
        """Those of `wanted` are 1; the others that were set get their former values back."""
        had = self._former[version]
        for path in [path for path in had if path not in wanted]:
            self._sysctls.pop(path, None)
            handle.set_sysctl(path, had.pop(path))
        for path in wanted:
            before = self._set_sysctl(handle, path, "1")
            if before is not None:
                had.setdefault(path, before)

    def _set_sysctl(self, handle: Handle, path: str, value: str) -> str | None:
        before = handle.set_sysctl(path, value)
        if before is not None:
            self._sysctls[path] = value
        return before

    # ------------------------------------------------------------------------ what others change

    def wanted(self) -> dict[Part, object]:
        """What the daemon has set but for the routes."""
        if self._tap is None or self._pushed is None:
            return {}
        device = Part(Subject.HOST_DEVICE, "", self.name)
        wanted: dict[Part, object] = {device: (self.name, True, self._pushed.mac, self._pushed.mtu)}
        wanted |= {Part(Subject.RULES, rule, str(rule)): True for rule in self._rules}
        return wanted | {
            Part(Subject.SYSCTLS, path, path.replace("/", ".")): value for path, value in self._sysctls.items()
        }

    def seen(self, handle: Handle, wanted: Iterable[Part]) -> dict[Part, object]:
        """What there is of that. A sysctl that the kernel doesn't have any more is left out of `wanted` by its own
        device, which is there under another name or not at all."""
        seen: dict[Part, object] = {}
        rules = handle.rules() if self._rules else set()
        for part in wanted:
            if part.subject is Subject.HOST_DEVICE:
                link = handle.link_at(self._index)
                if link is not None:
                    seen[part] = (link.name, link.up, link.mac, link.mtu)
            elif part.subject is Subject.RULES and part.key in rules:
                seen[part] = True
            elif part.subject is Subject.SYSCTLS:
                value = handle.sysctl(str(part.key))
                seen[part] = self._sysctls.get(str(part.key)) if value is None else value
        return seen

    def missing_routes(self) -> list[Part]:
        return [_route_part(route) for route in self._missing]

    def read_routes(self, handle: Handle) -> frozenset[HostRoute]:
        """In the master's namespace: all that there are. Errors: OSError."""
        return handle.host_routes(self._index) if self._routes else frozenset()

    def compare_routes(self, seen: frozenset[HostRoute]) -> None:
        self._missing |= self._routes.keys() - seen

    def routes_changed(self, change: RoutesChanged) -> None:
        if change.link_down and change.link_down == self._index:
            self._missing = set(self._routes)
        elif change.host_route in self._routes:
            self._missing.add(change.host_route)

    def mend(self, handle: Handle, part: Part) -> None:
        """Put it back. Errors: OSError."""
        if part.subject is Subject.ROUTES and part.key in self._routes:
            self._add_route(handle, part.key)
        elif part.subject is Subject.RULES:
            handle.add_rule(part.key)
        elif part.subject is Subject.SYSCTLS:
            handle.set_sysctl(part.key, self._sysctls[part.key])
        elif part.subject is Subject.HOST_DEVICE:
            self._mend_device(handle)

    def _mend_device(self, handle: Handle) -> None:
        link, master = handle.link_at(self._index), self._pushed
        if link is None or master is None:
            self.is_lost = True
            return
        if link.name != self.name:
            handle.set_link(self._index, up=False)  # a device that is up can't be renamed before Linux 6.2
            handle.set_link(self._index, name=self.name)
        handle.set_link(self._index, up=True, mac=master.mac, mtu=master.mtu)

    # ------------------------------------------------------------------------ the end

    async def close(self, place: Callable[[], int | None]) -> None:
        """Nothing is left of the interface. Idempotent."""
        left, self._left = self._left, None
        if left is not None:
            close_fds([left.fd])
            await self._runtime.store.drop(self._held_name)
        if self._tap is None:
            return
        self._changes.detach_host()
        self.is_lost = False
        master, self._pushed, self._applied = self._pushed, None, None
        if master is not None:
            with contextlib.suppress(OSError):
                await self._runtime.run_in_netns(
                    place, lambda handle: self._set_policy(handle, master, HostPortConfig())
                )
        self._former, self._sysctls, self._rules, self._routes, self._missing = {4: {}, 6: {}}, {}, set(), {}, set()
        await self._drop_tap()

    async def _clean(self, place: Callable[[], int | None], master: Link, config: HostPortConfig) -> None:
        """Remove, once, what an earlier run left if it was killed."""
        if self._applied != config:
            self._applied = config
            with contextlib.suppress(OSError):
                await self._runtime.run_in_netns(place, lambda handle: self._set_policy(handle, master, config))
            self._former = {4: {}, 6: {}}

    async def _drop_tap(self) -> None:
        tap, self._tap, self._index = self._tap, None, 0
        await self._runtime.store.drop(self._held_name)
        if tap is not None:
            await self._runtime.run_blocking(tap.close)


def _route_part(route: HostRoute) -> Part:
    return Part(Subject.ROUTES, route, f"route to {route[0]}")


def _forwarding(version: int, device: str) -> str:
    """What lets the host forward what a device receives. IPv6 has it for one device alone from Linux 6.17."""
    return f"net/ipv4/conf/{device}/forwarding" if version == 4 else f"net/ipv6/conf/{device}/force_forwarding"
