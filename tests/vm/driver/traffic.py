"""Live traffic through a switch, as JSON: what every stack and every place saw of a seed's actions.

    python -m tests.vm.driver.traffic ipvlan --seed 1 --prefix NAME l2-bridge ...   everything, with the kernel's driver
    python -m tests.vm.driver.traffic run    --seed 1 --prefix NAME l2-bridge ...   rigs that have their ports

Each mode and flag has a rig of its own (namespaces NAME-MODE-FLAG-...), and all are busy at the same time. For
vepa the second half of the actions has a reflective relay at the wire, as IEEE 802.1Qbg has it: it sends back
whatever comes from the master's MAC and is not for the wire.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from tests.vm.driver.actions import Actor
from tests.vm.driver.capture import ETH_P_ALL, PACKET_IGNORE_OUTGOING, SOL_PACKET, Capture, is_report
from tests.vm.driver.plan import plan
from tests.vm.driver.topology import MASTER_MAC, WIRE_MAC, Rig

PACKET_VNET_HDR = 15
VNET_HDR = 10  # bytes


def rig_of(prefix: str, pair: str) -> Rig:
    return Rig(f"{prefix}-{pair}")


def run(rig: Rig, seed: int, rounds: int, reflect: bool) -> dict[str, Any]:
    """A seed's actions, their outcomes, the frames of each, and the frames of none."""
    actions = plan(seed, rounds)
    outcomes, seconds = [], []
    capture = Capture(rig)
    try:
        actor = Actor(rig, capture)
        with contextlib.ExitStack() as stack, contextlib.closing(actor):
            for position, action in enumerate(actions):
                if reflect and position == len(actions) // 2:
                    actor.rest()
                    stack.enter_context(reflective_relay(rig))
                began = time.monotonic()
                outcomes.append(actor.do(position, action))
                seconds.append(round(time.monotonic() - began, 2))
    finally:
        capture.close()
    frames, background = capture.records([action["kind"] for action in actions])
    return {"actions": actions, "outcomes": outcomes, "frames": frames, "background": background, "seconds": seconds}


@contextlib.contextmanager
def reflective_relay(rig: Rig) -> Iterator[None]:
    """Until the body ends: what arrives at the wire from the master's MAC goes back as it is, offloads included;
    but not what is for the wire itself, nor reports of groups, which the stacks send when they like."""
    master, wire = (bytes.fromhex(mac.replace(":", "")) for mac in (MASTER_MAC, WIRE_MAC))
    with rig.inside("wire"):
        relay = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    relay.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    relay.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    relay.bind(("w0", ETH_P_ALL))
    relay.settimeout(0.1)
    over = threading.Event()

    def reflect() -> None:
        while not over.is_set():
            try:
                frame = relay.recv(1 << 17)
                target, source = frame[VNET_HDR : VNET_HDR + 6], frame[VNET_HDR + 6 : VNET_HDR + 12]
                if source == master and target != wire and not is_report(frame[VNET_HDR:]):
                    relay.send(frame)
            except TimeoutError:
                pass

    thread = threading.Thread(target=reflect, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        relay.close()


def one_pair(arguments: argparse.Namespace, pair: str) -> dict[str, Any]:
    mode, flag = pair.split("-")
    rig = rig_of(arguments.prefix, pair)
    if arguments.command == "ipvlan":
        rig.build(mode)
        rig.make_ipvlan(mode, flag)
        rig.configure_ports()
    return run(rig, arguments.seed, arguments.rounds, reflect=flag == "vepa")


def at_the_same_time(arguments: argparse.Namespace) -> dict[str, Any]:
    """A process for each pair. Errors: RuntimeError with the first one's traceback."""
    readers = {}
    for pair in arguments.pairs:
        reader, writer = os.pipe()
        if not os.fork():
            with os.fdopen(writer, "w") as file:
                try:
                    json.dump(one_pair(arguments, pair), file)
                except BaseException:
                    json.dump({"failed": traceback.format_exc()}, file)
            os._exit(0)
        os.close(writer)
        readers[pair] = reader
    found = {}
    for pair, reader in readers.items():
        with os.fdopen(reader) as file:
            found[pair] = json.load(file)
    for _ in readers:
        os.wait()
    for pair, one in found.items():
        if "failed" in one:
            raise RuntimeError(f"{pair}: {one['failed']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("ipvlan", "run"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prefix", default="ivt")
    parser.add_argument("pairs", nargs="+", metavar="MODE-FLAG")
    json.dump(at_the_same_time(parser.parse_args()), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
