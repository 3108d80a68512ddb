"""Cases that the kernel's own drivers decide: what one of them does for its users, ipvsw has to do as well.

A case is a function that raises AssertionError unless everything is right. It names the drivers that can do it; these
must pass it too, so that no case asks for what none of them does. The cases of a group follow one another on the same
ports, once for each contestant.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.support.running import Daemon, port, switch
from tests.support.topology import Lab, batch

OURS = "ipvsw"
DRIVERS = {"ipvlan": "ipvlan mode {} bridge", "macvlan": "macvlan mode bridge"}


@dataclass(frozen=True)
class Ports:
    """What a contestant makes on one master: its ports' namespaces with the addresses of each."""

    master: str
    addresses: Mapping[str, Sequence[str]]
    mode: str = "l2"

    def devices(self) -> Iterator[tuple[str, str, Sequence[str]]]:
        """Name, namespace and addresses of each: the first is ipvl1."""
        for k, (netns, addresses) in enumerate(self.addresses.items(), 1):
            yield f"ipvl{k}", netns, addresses


Do = Callable[[Lab], None]


@dataclass(frozen=True)
class Case:
    do: Do
    contestants: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.do.__name__


class Group:
    """Cases on the same topology and ports, in their order."""

    def __init__(
        self, topology: Callable[[], contextlib.AbstractContextManager[Lab]], ports: Callable[[Lab], Sequence[Ports]]
    ) -> None:
        self.topology = topology
        self.ports = ports
        self.cases: list[Case] = []

    def case(self, *drivers: str) -> Callable[[Do], Do]:
        """Decorator: a case, and the drivers that can do it."""
        assert set(drivers) <= DRIVERS.keys()

        def add(do: Do) -> Do:
            self.cases.append(Case(do, (*drivers, OURS)))
            return do

        return add


def run(groups: Sequence[Group]) -> Iterator[tuple[str, str, str]]:
    """Case, contestant, and what went wrong, "" if nothing did. Each contestant serves all groups at the same time: one
    daemon has all switches, as a guest takes long to start one."""
    for contestant in (*DRIVERS, OURS):
        with contextlib.ExitStack() as stack:
            labs = [
                (stack.enter_context(group.topology()), group)
                for group in groups
                if any(contestant in case.contestants for case in group.cases)
            ]
            wanted = [(lab, ports) for lab, group in labs for ports in group.ports(lab)]
            said = stack.enter_context(_served(wanted) if contestant == OURS else _made(DRIVERS[contestant], wanted))
            for lab, group in labs:
                for case in group.cases:
                    if contestant in case.contestants:
                        yield case.name, contestant, _fault(case, lab, said)


def _fault(case: Case, lab: Lab, said: Callable[[], str]) -> str:
    try:
        case.do(lab)
    except Exception:
        return f"{traceback.format_exc()}\n{said()}"
    return ""


@contextlib.contextmanager
def _served(wanted: Sequence[tuple[Lab, Ports]]) -> Iterator[Callable[[], str]]:
    """ipvsw's ports, for as long as the body lasts; what the daemon says meanwhile."""
    switches = [
        switch(
            ports.master,
            lab.host,
            [port(name, netns, addresses) for name, netns, addresses in ports.devices()],
            name=f"switch{k}",
            mode=ports.mode,
        )
        for k, (lab, ports) in enumerate(wanted)
    ]
    with Daemon(*switches, home=wanted[0][0].home) as daemon:
        daemon.wait()
        yield lambda: daemon.said()[-4000:]


@contextlib.contextmanager
def _made(kind: str, wanted: Sequence[tuple[Lab, Ports]]) -> Iterator[Callable[[], str]]:
    """The same by a driver of the kernel; they go with their namespaces."""
    for lab, ports in wanted:
        words = f"type {kind.format(ports.mode)}"
        devices = list(ports.devices())
        batch(
            (f"link add link {ports.master} name {name} netns {netns} {words}" for name, netns, _ in devices), lab.host
        )
        for name, netns, addresses in devices:
            given = (f"addr add {each} dev {name}{' nodad' * (':' in each)}" for each in addresses)
            batch([f"link set {name} up", *given], netns)
    yield lambda: ""
