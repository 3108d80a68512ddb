"""Differences between two runs of the same live traffic, and the differences that are meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.vm.driver.topology import PLACES, PORTS

UNJOINED = " unjoined"


@dataclass(frozen=True)
class Difference:
    """One thing that the kernel's driver and ipvsw did differently in one action; `action` is None for frames that
    the stacks sent on their own account. `key` is a key of the outcome, or a frame in words: then the values are how
    often it was seen."""

    pair: str
    position: int
    action: dict[str, Any] | None
    key: str
    kernel: Any
    ipvsw: Any

    def __str__(self) -> str:
        doing = "by itself" if self.action is None else f"{self.position} {_words(self.action)}"
        return f"{self.pair}: {doing}: {self.key}: kernel {self.kernel}, ipvsw {self.ipvsw}"


@dataclass(frozen=True)
class Known:
    """A difference that is meant: where docs/explanation/differences.md has it (heading, first cell of the row), and
    which ones it explains."""

    heading: str
    row: str
    explains: Callable[[Difference], bool]


def compare(kernel: dict[str, Any], ipvsw: dict[str, Any]) -> Iterator[Difference]:
    """Every difference between two runs of `traffic` with the same seed and pairs."""
    for pair, one in kernel.items():
        other = ipvsw[pair]
        assert one["actions"] == other["actions"], "not the same plan"
        for position, action in enumerate(one["actions"]):
            for key, value, counterpart in (
                *_differing(one["outcomes"][position], other["outcomes"][position], None),
                *_differing(one["frames"][position], other["frames"][position], 0),
            ):
                yield Difference(pair, position, action, key, value, counterpart)
        mine, others = (dict.fromkeys(run["background"], 1) for run in (one, other))
        for key, value, counterpart in _differing(mine, others, 0):
            yield Difference(pair, -1, None, key, value, counterpart)


def unexplained(differences: Iterator[Difference], known: tuple[Known, ...]) -> tuple[list[Difference], set[Known]]:
    """Those that nothing in `known` explains, and what of `known` explained others."""
    left, used = [], set()
    for difference in differences:
        why = next((one for one in known if one.explains(difference)), None)
        if why is None:
            left.append(difference)
        else:
            used.add(why)
    return left, used


def _differing(one: dict[str, Any], other: dict[str, Any], absent: Any) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(one.keys() | other.keys()):
        if one.get(key, absent) != other.get(key, absent):
            yield key, one.get(key, absent), other.get(key, absent)


def _words(action: dict[str, Any]) -> str:
    rest = [f"{k}={v}" for k, v in action.items() if k not in ("kind", "family", "source", "target")]
    what = f"{action['kind']} v{action['family']} from {action['source']}"
    return " ".join((what, *([f"to {action['target']}"] if "target" in action else []), *rest))


def documented(text: str, known: Known) -> bool:
    """Whether `text`, of docs/explanation/differences.md, has the row under the heading."""
    section = re.search(rf"^## {re.escape(known.heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return bool(section and f"\n| {known.row} |" in section[1])


REFUSED = "No buffer space available"


def _refused_to_its_sender(it: Difference) -> bool:
    return it.key.endswith("errors") and [error for error in it.kernel or () if error != REFUSED] == it.ipvsw


def _too_long_for_its_path(it: Difference) -> bool:
    """Of what a port sends over a path that the host knows to be narrow, except that less arrives."""
    if it.pair.startswith("l2") or it.action is None or it.action["source"] not in PORTS:
        return False
    return bool(it.action.get("target") == "narrow" and not (_arrival(it) and it.kernel))


def _seen_in_the_port(it: Difference) -> bool:
    return it.pair.startswith("l3s") and it.key.startswith(PORTS) and it.kernel == 0


def _one_hop_more(it: Difference) -> bool:
    """What reaches the master with a TTL of 1 ends there, so that nobody is looked for to answer it; an error about
    what arrived quotes it with one less."""
    if not it.pair.startswith("l3s"):
        return False
    if it.action is None:
        return bool((" ns " in it.key or " na " in it.key or " arp " in it.key) and it.kernel > it.ipvsw)
    quoted = " icmp " in it.key and " about " in it.key
    ends = it.action.get("ttl", 64) <= 2
    return quoted or (ends and (_arrival(it) or (it.key.startswith(PLACES) and it.kernel > it.ipvsw)))


def _hosts_own(it: Difference) -> bool:
    """What the host sent to a port by way of the wire's router, its error messages included: it does not forward what
    claims to come from itself."""
    if not it.pair.startswith("l3s") or it.action is None:
        return False
    from_or_to_host = "host" in (it.action["source"], it.action.get("target"))
    told_by_host = it.key.endswith("errors") and not it.ipvsw and all(e.endswith(" by host") for e in it.kernel)
    told_tcp = it.key == "error" and (it.kernel, it.ipvsw) == ("No route to host", "timed out")
    return from_or_to_host or told_by_host or told_tcp


def _told_by_the_host(it: Difference) -> bool:
    """That the host has no way on: the driver sends that out on the wire, where nobody brings it back."""
    if not it.pair.startswith("l3s") or it.action is None:
        return False
    errors = it.key.endswith("errors") and not it.kernel and all(error.endswith(" by host") for error in it.ipvsw)
    return errors or (it.key == "error" and (it.kernel, it.ipvsw) == ("timed out", "No route to host"))


def _arrival(it: Difference) -> bool:
    return it.key.removeprefix("then ") in ("received", "answers", "back", "there", "same")


def _leaks(it: Difference) -> bool:
    return bool(it.key.endswith(UNJOINED) and it.key.startswith(PORTS) and it.kernel > 0 and it.ipvsw == 0)


KNOWN = (
    Known("Frames", "a frame that the driver refuses", _refused_to_its_sender),
    Known("Frames", "who gets a multicast frame", _leaks),
    Known("Routed modes", "a packet above the path's MTU that must not be fragmented", _too_long_for_its_path),
    Known("Routed modes", "`l3s`: what arrives for a port", _seen_in_the_port),
    Known("Routed modes", "`l3s`: TTL and hop limit of what arrives", _one_hop_more),
    Known("Routed modes", "`l3s`: what arrives for a port", _hosts_own),
    Known("Routed modes", "`l3s`: what the host itself sends to a port's address", _told_by_the_host),
)
