"""One action after another, done with the namespaces' own stacks, and what its two ends saw of it.

An outcome is a dict of words and numbers that two runs have in common. An action is over when it has come out, when
an error has arrived, or when no frame has moved anywhere for a while.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tests.support.patience import patient
from tests.vm.driver.capture import FIRST_NUMBER, Capture
from tests.vm.driver.neighbours import forget_failed
from tests.vm.driver.plan import Action
from tests.vm.driver.sockets import (
    FAMILY,
    LONGEST,
    TURN,
    Outcome,
    close,
    come_to,
    datagram,
    errors_of,
    read,
    send,
    serve,
    told,
    turns,
    word,
)
from tests.vm.driver.topology import ADDRESS, DEVICE, NAME, PLACES, PORTS, Rig, ip, place_of

IP_MTU_DISCOVER, IP_RECVERR, IPV6_MTU_DISCOVER, IPV6_RECVERR = 10, 11, 23, 25
IP_MULTICAST_ALL, IPV6_MULTICAST_ALL = 49, 29
IPV6_HDRINCL = 36
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
IDLE = patient(0.8)  # s without any frame: nothing more comes; longer than any stack's pause before it asks again
NOTICED = patient(0.25)  # s until what changed in a namespace counts: an idle machine's switch has 100 ms for it
REPEATS = 2


class Actor:
    """Does actions in a rig, watched by `capture`."""

    def __init__(self, rig: Rig, capture: Capture) -> None:
        self.rig, self.capture = rig, capture
        self.number = 0
        self.index, self._netlink = {}, {}
        for place in PLACES:
            with rig.inside(place):
                self.index[place] = socket.if_nametoindex(DEVICE[place])
                self._netlink[place] = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)

    def do(self, position: int, action: Action) -> Outcome:
        self.capture.now, self.number = position, FIRST_NUMBER + position
        self.capture.note_groups()
        perform: Callable[[Action], Outcome] = getattr(self, "_" + action["kind"].replace("-", "_"))
        outcome = perform(action)
        self._wait(lambda: False, 0.03)
        self.capture.note_groups()
        for netlink in self._netlink.values():
            forget_failed(netlink)
        return outcome

    def close(self) -> None:
        for netlink in self._netlink.values():
            netlink.close()

    def rest(self) -> None:
        """Until nothing has moved for a while."""
        self._wait(lambda: False, IDLE)

    # ---------------------------------------------------------------- kinds

    def _ping(self, action: Action) -> Outcome:
        """Two echo requests, the second one after an answer to the first."""
        family = action["family"]
        kind = socket.IPPROTO_ICMP if family == 4 else socket.getprotobyname("ipv6-icmp")
        answers: list[str] = []
        errors: set[str] = set()
        with self._socket(action["source"], family, socket.SOCK_DGRAM, kind) as one:
            self._options(one, action)
            one.bind(self._from(action, self.number))
            for sequence in range(REPEATS):
                request = struct.pack("!BBHHH", 8 if family == 4 else 128, 0, 0, 0, sequence) + bytes(action["size"])
                send(one, request, self._to(action, 0), errors)
                self._wait(lambda: len(answers) > sequence or errors, IDLE, one, answers, errors)  # noqa: B023
                if len(answers) <= sequence:
                    break
        return {"answers": answers, "errors": told(errors)}

    def _udp(self, action: Action) -> Outcome:
        """Two datagrams that the addressee answers, the second one after the first answer; who else got them."""
        family, place = action["family"], place_of(action["target"])
        listeners = self._listeners(family, {place: str(action["target"])} if place else {})
        answers: list[str] = []
        errors: set[str] = set()
        received: list[str] = []
        try:
            with self._socket(action["source"], family, socket.SOCK_DGRAM) as one:
                self._options(one, action)
                one.bind(self._from(action, 0))
                for number in range(1, REPEATS + 1):
                    send(one, bytes(action["size"]), self._to(action, self.number), errors)
                    done = lambda: len(answers) >= number or errors  # noqa: B023, E731
                    self._wait(done, IDLE, one, answers, errors, listeners, received, echo=place)
                    if len(answers) < number:
                        break
        finally:
            close(listeners)
        return {"received": sorted(received), "answers": sorted(answers), "errors": told(errors)}

    def _path_mtu(self, action: Action) -> Outcome:
        """The same datagrams twice: what was learned the first time counts the second time."""
        first = self._udp(action)
        return first | {f"then {key}": value for key, value in self._udp(action).items()}

    def _udp_closed(self, action: Action) -> Outcome:
        errors: set[str] = set()
        with self._socket(action["source"], action["family"], socket.SOCK_DGRAM) as one:
            self._options(one, action)
            one.bind(self._from(action, 0))
            send(one, b"anybody?", self._to(action, self.number), errors)
            self._wait(lambda: errors, IDLE, one, [], errors)
        return {"errors": told(errors)}

    def _tcp(self, action: Action) -> Outcome:
        """A connection, `size` bytes there and, when all of them have come, as many back."""
        place = place_of(action["target"])
        said: Outcome = {}
        thread = None
        if place:
            server = self._socket(place, action["family"], socket.SOCK_STREAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(self._address(action["target"], action["family"], self.number, place))
            server.listen()
            server.settimeout(LONGEST)
            thread = threading.Thread(target=serve, args=(server, said))
            thread.start()
        outcome = self._connect(action, action["size"])
        if thread:
            if "error" in outcome:
                server.shutdown(socket.SHUT_RDWR)
            thread.join()
            server.close()
        return outcome | ({"there": said["there"]} if "there" in said else {})

    def _tcp_closed(self, action: Action) -> Outcome:
        return self._connect(action, 0)

    def _connect(self, action: Action, size: int) -> Outcome:
        content = os.urandom(size)
        with self._socket(action["source"], action["family"], socket.SOCK_STREAM) as one:
            try:
                one.bind(self._from(action, 0))
                come_to(one, self._to(action, self.number))
            except OSError as error:
                return {"error": word(error)}
            try:
                one.settimeout(LONGEST)
                one.sendall(content)
                one.shutdown(socket.SHUT_WR)
                back = read(one)
                return {"back": len(back), "same": back == content}
            except OSError as error:
                return {"broken": word(error)}

    def _broadcast(self, action: Action) -> Outcome:
        listeners = self._listeners(4, {})
        errors: set[str] = set()
        received: list[str] = []
        try:
            with self._socket(action["source"], 4, socket.SOCK_DGRAM) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE[action["source"]].encode())
                one.bind((ADDRESS[action["source"]][4], 0))
                send(one, bytes(action["size"]), (action["to"], self.number), errors)
                self._wait(lambda: False, IDLE / 2, one, [], errors, listeners, received)
        finally:
            close(listeners)
        return {"received": sorted(received), "errors": told(errors)}

    def _multicast(self, action: Action) -> Outcome:
        """One datagram to a group that some places have joined."""
        family, source = action["family"], action["source"]
        listeners = self._listeners(family, {})
        errors: set[str] = set()
        received: list[str] = []
        group = socket.inet_pton(FAMILY[family], action["to"])
        try:
            for one, place in listeners.items():
                if family == 4:
                    one.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
                    join = group + struct.pack("=4si", bytes(4), self.index[place])
                    option = (socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP)
                else:
                    one.setsockopt(socket.IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)
                    join = group + struct.pack("=i", self.index[place])
                    option = (socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP)
                if place in action["members"]:
                    one.setsockopt(*option, join)
            self._wait(lambda: False, NOTICED)
            self.capture.note_groups()
            with self._socket(source, family, socket.SOCK_DGRAM) as one:
                if family == 4:
                    out = struct.pack("=4s4si", bytes(4), bytes(4), self.index[source])
                    one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, out)
                    one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 9)
                else:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self.index[source])
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 9)
                one.bind(self._address(source, family, 0, source))
                send(one, bytes(action["size"]), (action["to"], self.number), errors)
                self._wait(lambda: False, IDLE / 2, one, [], errors, listeners, received)
        finally:
            close(listeners)
        return {"received": sorted(received), "errors": told(errors)}

    def _resolve(self, action: Action) -> Outcome:
        """Forget the neighbour, ping it once, and look at the neighbour table."""
        source, family = action["source"], action["family"]
        address = ADDRESS[action["target"]][family]
        ip([f"neigh flush to {address} dev {DEVICE[source]}"], self.rig.netns(source), force=True)
        outcome = self._ping(action | {"size": 56, "ttl": 64, "df": False, "routed": False})
        command = ["ip", "-n", self.rig.netns(source), "-json", "neigh", "show", address, "dev", DEVICE[source]]
        shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout or "[]")
        neighbour = [entry.get("lladdr", "none") for entry in shown if "FAILED" not in entry.get("state", ())]
        return outcome | {"neighbour": neighbour}

    def _conflict(self, action: Action) -> Outcome:
        """Add an address that another place has and see what duplicate address detection makes of it."""
        place, address = action["source"], ADDRESS[action["target"]][6]
        try:
            self.rig.ip(place, f"addr add {address}/128 dev {DEVICE[place]}")
        except RuntimeError as error:
            return {"refused": str(error).splitlines()[0].split(": ", 1)[-1]}
        self.capture.note_groups()
        wanted = socket.inet_pton(socket.AF_INET6, address).hex()
        flags = 0
        try:
            with self.rig.inside(place):
                deadline = time.monotonic() + LONGEST
                while time.monotonic() < deadline:
                    with open("/proc/thread-self/net/if_inet6") as file:
                        entries = [line.split() for line in file]
                    flags = next((int(f[4], 16) for f in entries if f[0] == wanted and f[5] == DEVICE[place]), 0)
                    if flags & 0x08 or not flags & 0x40:
                        break
                    time.sleep(0.02)
        finally:
            self.rig.ip(place, f"addr del {address}/128 dev {DEVICE[place]}")
        self._wait(lambda: False, NOTICED)
        return {"duplicate": bool(flags & 0x08), "tentative": bool(flags & 0x40)}

    def _fragments(self, action: Action) -> Outcome:
        """A datagram in hand-made fragments that arrive in the wrong order."""
        return self._raw(action, action["source"], action["size"])

    def _spoofed(self, action: Action) -> Outcome:
        """A datagram from an address that its sender hasn't got."""
        return self._raw(action, "stranger", 200)

    def _raw(self, action: Action, source: str, size: int) -> Outcome:
        family, place = action["family"], place_of(action["target"])
        target = action["target"].removesuffix("-link")
        listeners = self._listeners(family, {place: target} if place else {})
        received: list[str] = []
        errors: set[str] = set()
        try:
            packets = datagram(family, ADDRESS[source][family], ADDRESS[target][family], self.number, size)
            with self._socket(action["source"], family, socket.SOCK_RAW, socket.IPPROTO_RAW) as one:
                if family == 6:
                    one.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
                for packet in packets[::-1]:
                    send(one, packet, (ADDRESS[target][family], 0), errors)
                self._wait(lambda: received, IDLE, None, [], errors, listeners, received)
        finally:
            close(listeners)
        return {"received": sorted(received), "errors": told(errors)}

    # ---------------------------------------------------------------- means

    def _socket(self, place: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with self.rig.inside(place):
            return socket.socket(FAMILY[family], kind, protocol)

    def _address(self, name: str, family: int, port: int, place: str) -> Any:
        """What sockets at `place` call an address; a link-local one with its scope, IPv6 if it has only that."""
        address = ADDRESS[name][family]
        return (address, port) if family == 4 else (address, port, 0, self.index[place] if "-link" in name else 0)

    def _from(self, action: Action, port: int) -> Any:
        """The source's address: the one that is reached by routing, if the action says so and it has one."""
        place, family = str(action["source"]), action["family"]
        routed = {"wire": "beyond"} | {p: f"{p}-routed" for p in PORTS}
        name = routed.get(place, place) if action.get("routed") else place
        name = f"{place}-link" if action["target"].endswith("-link") else name
        return self._address(name, family, port, place)

    def _to(self, action: Action, port: int) -> Any:
        return self._address(action["target"], action["family"], port, action["source"])

    def _options(self, one: socket.socket, action: Action) -> None:
        discover = PMTUDISC_DO if action.get("df") else PMTUDISC_DONT
        if action["family"] == 4:
            one.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, action.get("ttl", 64))
        else:
            one.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            one.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, discover)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, action.get("ttl", 64))

    def _listeners(self, family: int, bound: Mapping[str, str]) -> dict[socket.socket, str]:
        """A UDP socket at every place, on the action's port: on the name in `bound`, else on any address."""
        made = {}
        for place in PLACES:
            one = self._socket(place, family, socket.SOCK_DGRAM)
            name = bound.get(place)
            one.bind(self._address(name, family, self.number, place) if name else ("", self.number))
            made[one] = place
        return made

    def _wait(
        self,
        done: Callable[[], Any],
        idle: float,
        one: socket.socket | None = None,
        answers: list[str] | None = None,
        errors: set[str] | None = None,
        listeners: dict[socket.socket, str] | None = None,
        received: list[str] | None = None,
        echo: str | None = None,
    ) -> None:
        """Until `done()`, or turns of `idle` s without a frame anywhere: fill the lists, and let `echo` answer."""
        listeners = listeners or {}
        poll = select.poll()
        known = {each.fileno(): each for each in (*listeners, *([one] if one else []))}
        for number in known:
            poll.register(number, select.POLLIN)
        began, last, left = time.monotonic(), self.capture.last, turns(idle)
        while not done():
            if not left or time.monotonic() - began > LONGEST:
                return
            ready = poll.poll(TURN)
            left, last = turns(idle) if ready or self.capture.last != last else left - 1, self.capture.last
            for number, _ in ready:
                each = known[number]
                if each in listeners:
                    content, sender = each.recvfrom(65536)
                    assert received is not None
                    received.append(f"{listeners[each]} {len(content)} from {NAME.get(sender[0].split('%')[0])}")
                    if listeners[each] == echo:
                        send(each, content, sender, set())
                    continue
                assert answers is not None and errors is not None
                errors |= errors_of(each)
                try:
                    content, sender = each.recvfrom(65536, socket.MSG_DONTWAIT)
                    answers.append(f"{len(content)} from {NAME.get(sender[0].split('%')[0])}")
                except BlockingIOError:
                    pass
                except OSError as error:
                    errors |= {word(error)} | errors_of(each)
