"""What the live traffic consists of: a seed makes a list of actions. Pure, and the same on every machine.

An action is a dict: "kind", "family" (4 or 6), "source" (a place), and what the kind needs besides; "target" is a
name out of `topology.ADDRESS`.
"""

from __future__ import annotations

import random
from typing import Any

from tests.vm.driver.topology import PLACES, PORTS, place_of

Action = dict[str, Any]

# How often each kind occurs in a round. A seed decides on the order and on everything else.
ROUND = {
    "ping": 9,
    "udp": 7,
    "tcp": 5,
    "udp-closed": 2,
    "tcp-closed": 2,
    "broadcast": 3,
    "multicast": 4,
    "resolve": 3,
    "conflict": 3,
    "fragments": 3,
    "spoofed": 1,
    "path-mtu": 3,
}
# Host and wire know each other before the rest begins: which of its addresses asks for a neighbour is then no matter
# of who happened to send first.
ACQUAINTANCE: tuple[Action, ...] = tuple(
    {"kind": "ping", "family": family, "source": source, "target": target, "size": 56, "ttl": 64, "df": False}
    for family, source, target in (
        (4, "host", "wire"),
        (6, "host", "wire"),
        (6, "host", "wire-link"),
        (6, "wire", "host"),
        (6, "wire", "host-link"),
    )
)
SIZES = (1, 56, 300, 1280, 1452, 1472, 1473, 3000, 9000)  # of payload, in bytes; the links' MTU is 1500
REMOTE = ("wire", "wire", "beyond", "narrow", "host", "nobody", "nowhere")


def plan(seed: int, rounds: int = 1) -> list[Action]:
    """The actions of a seed, `rounds` times the number of a round."""
    random_ = random.Random(seed)
    actions = list(ACQUAINTANCE)
    for _ in range(rounds):
        kinds = [kind for kind, count in ROUND.items() for _ in range(count)]
        random_.shuffle(kinds)
        actions += [_action(random_, kind) for kind in kinds]
    return actions


def _action(random_: random.Random, kind: str) -> Action:
    family = random_.choice((4, 6))
    action: Action = {"kind": kind, "family": family}
    if kind == "conflict":
        # An address that another one has already: on a port, what the wire has; elsewhere, what anybody has.
        action |= {"family": 6, "source": random_.choice((*PORTS, "wire", "wire", "host"))}
        others = ("wire",) if action["source"] in PORTS else [p for p in PLACES if p != action["source"]]
        return action | {"target": random_.choice(others)}
    if kind == "path-mtu":
        # From a port over a path that is narrower than its own link.
        source = random_.choice(PORTS)
        target = "narrow" if source == "p3" else random_.choice(("narrow", "p3-routed"))
        more = {"size": random_.choice((1240, 1400, 1472)), "ttl": 64, "df": random_.random() < 0.7}
        return action | {"source": source, "target": target, "routed": True} | more
    source = action["source"] = random_.choice((*PORTS, *PORTS, "wire", "wire", "host"))
    if kind == "broadcast":
        action |= {"family": 4, "to": random_.choice(("10.1.0.255", "255.255.255.255"))}
    elif kind == "multicast":
        members = [place for place in PLACES if place != source and random_.random() < 0.6]
        number = random_.randrange(1, 250)
        action |= {"to": f"239.1.2.{number}" if family == 4 else f"ff05::1:{number:x}", "members": members}
    else:
        action |= {"target": _target(random_, source, family)}
    if kind in ("ping", "udp", "broadcast", "multicast", "fragments"):
        action["size"] = random_.choice(SIZES if kind != "fragments" else (3000, 5000))
    if kind in ("ping", "udp"):
        action |= {"ttl": random_.choice((64, 64, 64, 1, 2)), "df": random_.random() < 0.4}
    if kind == "tcp":
        action["size"] = random_.choice((1, 1000, 20000, 150000))
    if kind in ("ping", "udp", "tcp", "udp-closed", "tcp-closed"):
        # What the host says about a narrow path goes to the sender: one whose address the host has to look for would
        # have it ask on the wire.
        narrow, link = action["target"] == "narrow", action["target"].endswith("-link")
        action["routed"] = narrow or (random_.random() < 0.5 and not link)
    return action


def _target(random_: random.Random, source: str, family: int) -> str:
    suffixes = ("", "", "-routed", "-routed") if family == 4 else ("", "", "-routed", "-routed", "-link")
    names = [port + suffix for port in PORTS for suffix in suffixes] + list(REMOTE)
    if family == 6:
        names.append("wire-link")
    return random_.choice([name for name in names if place_of(name) != source])
