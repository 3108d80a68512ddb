#!/usr/bin/env python3
"""Inject frames into an ipvlan-shaped topology and record who received what.

The topology ("rig") is always the same, whatever implements the ports:

    netns ipvc-w          netns ipvc-h                 netns ipvc-n1..n3
    w0 (the wire)  <veth> m0 (the master)  <switch>    s1, s2, s3 (the ports)

    m0  02:00:00:00:00:01  10.1.0.1/24   fd00:1::1/64   default via 10.1.0.254 / fd00:1::254
    w0  02:00:00:00:00:fe  (no address; static neighbours for .254 and .50 on m0 point at it)
    sK  MAC of m0          10.1.0.1K/24  fd00:1::1K/64  (K = 1..3), s1 also 10.2.0.11/24

`rig.py base` makes the namespaces, m0 and w0; the implementation under test then has to put
s1..s3 into ipvc-n1..n3; `rig.py addresses` gives the ports their addresses and silences every
stack (so that only injected frames are on the move); `rig.py replay corpus.json` injects each
case and writes what was seen; `rig.py down` removes all.  Needs root, iproute2 and nftables;
Python's standard library only.

A case is {"id", "at": "wire"|"host"|"s1".., "frame": hex}.  A sighting is
{"at", "type": "host"|"broadcast"|"multicast"|"otherhost", "frame": hex}: a frame seen on receive
by the wire's far end, by a port's namespace, or by the host's own protocol handlers on m0 (that
is: after the switch has had the chance to take it away from the host).
"""

import ctypes
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

WIRE, HOST = "ipvc-w", "ipvc-h"
PORTS = ("s1", "s2", "s3")
NETNS = {"wire": (WIRE, "w0"), "host": (HOST, "m0"), **{p: (f"ipvc-n{p[1]}", p) for p in PORTS}}
MASTER_MAC, WIRE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:fe"
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING = 263, 8, 23
PKTTYPE = {0: "host", 1: "broadcast", 2: "multicast", 3: "otherhost"}
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6


def sh(command, check=True):
    return subprocess.run(command, shell=True, check=check, capture_output=True, text=True).stdout


def base():
    down()
    for netns in (WIRE, HOST, "ipvc-n1", "ipvc-n2", "ipvc-n3"):
        sh(f"ip netns add {netns}")
        sh(f"ip -n {netns} link set lo up")
        quiet(netns)
    sh(f"ip link add m0 netns {HOST} address {MASTER_MAC} type veth peer name w0 netns {WIRE} address {WIRE_MAC}")
    for netns, device in ((HOST, "m0"), (WIRE, "w0")):
        sh(f"ip netns exec {netns} sysctl -qw net.ipv6.conf.{device}.addr_gen_mode=1")
        sh(f"ip -n {netns} link set {device} up")
    sh(f"ip netns exec {WIRE} sysctl -qw net.ipv6.conf.w0.disable_ipv6=1")
    sh(f"ip -n {HOST} addr add 10.1.0.1/24 dev m0")
    sh(f"ip -n {HOST} addr add fd00:1::1/64 dev m0 nodad")
    for last in ("254", "50"):
        sh(f"ip -n {HOST} neigh add 10.1.0.{last} lladdr {WIRE_MAC} dev m0")
        sh(f"ip -n {HOST} neigh add fd00:1::{last} lladdr {WIRE_MAC} dev m0")
    sh(f"ip -n {HOST} route add default via 10.1.0.254")
    sh(f"ip -n {HOST} route add default via fd00:1::254")
    # The host's stack must not answer: what it receives is observed before these hooks.
    nft(
        HOST,
        """
        table inet ipvc {
            chain arriving { type filter hook input priority 0; policy drop; }
            chain through { type filter hook forward priority 0; policy drop; }
        }
        table arp ipvc {
            chain arriving { type filter hook input priority 0; policy drop; }
        }""",
    )


def quiet(netns):
    for key in (
        "all.accept_ra=0",
        "default.accept_ra=0",
        "default.router_solicitations=0",
        "default.dad_transmits=0",
        "default.addr_gen_mode=1",
        "default.mldv1_unsolicited_report_interval=0",
    ):
        sh(f"ip netns exec {netns} sysctl -qw net.ipv6.conf.{key}", check=False)


def nft(netns, text):
    subprocess.run(["ip", "netns", "exec", netns, "nft", "-f", "-"], input=text, text=True, check=True)


def links():
    """The ports, by the kernel module."""
    for port in PORTS:
        sh(f"ip -n {HOST} link add link m0 name {port} netns {NETNS[port][0]} type ipvsw")


def addresses():
    for port in PORTS:
        netns, k = NETNS[port][0], port[1]
        sh(f"ip netns exec {netns} sysctl -qw net.ipv6.conf.{port}.addr_gen_mode=1", check=False)
        sh(f"ip netns exec {netns} sysctl -qw net.ipv6.conf.{port}.accept_ra=0", check=False)
        sh(f"ip -n {netns} link set {port} up")
        sh(f"ip -n {netns} addr add 10.1.0.1{k}/24 dev {port}")
        sh(f"ip -n {netns} addr add fd00:1::1{k}/64 dev {port} nodad")
        nft(
            netns,
            f"""
            table netdev ipvc {{
                chain arriving {{ type filter hook ingress device {port} priority 0; policy drop; }}
            }}""",
        )
    sh("ip -n ipvc-n1 addr add 10.2.0.11/24 dev s1")
    time.sleep(1.0)  # let multicast joins and address learning settle


def down():
    for netns in (WIRE, HOST, "ipvc-n1", "ipvc-n2", "ipvc-n3"):
        sh(f"ip netns del {netns}", check=False)


class InNetns:
    """Run the body in another network namespace (sockets made there stay there)."""

    libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, netns):
        self.target = os.open(f"/run/netns/{netns}", os.O_RDONLY)

    def __enter__(self):
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY)
        self._set(self.target)

    def __exit__(self, *_):
        self._set(self.home)
        os.close(self.home)
        os.close(self.target)

    def _set(self, fd):
        if self.libc.setns(fd, 0):
            raise OSError(ctypes.get_errno(), "setns")


def sniffer(netns, device, protocol):
    with InNetns(netns):
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        s.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        if protocol == ETH_P_ALL:
            s.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        s.bind((device, protocol))
        s.setblocking(False)
        return s


def receive(s):
    """One frame with its VLAN tag put back, and its packet type."""
    frame, ancillary, _, address = s.recvmsg(65536, 64)
    for level, kind, data in ancillary:
        if level == SOL_PACKET and kind == PACKET_AUXDATA and len(data) >= 20:
            status, _, _, _, _, tci, tpid = struct.unpack_from("=IIIHHHH", data)
            if status & TP_STATUS_VLAN_VALID:
                tpid = tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                frame = frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
    return frame, PKTTYPE.get(address[2])


def replay(corpus, gap=0.004, settle=1.5, until=lambda sightings: True, limit=0.0):
    """What was seen of each case. After the last frame: `until` all is there, up to `limit` s, and `settle` s more."""
    cases = json.loads(Path(corpus).read_text())
    ethertypes = {int(c["frame"][24:28], 16) for c in cases if len(c["frame"]) >= 28}
    ethertypes = {e for e in ethertypes if e >= 0x600} | {0x0800, 0x0806, 0x86DD}
    observers = [("wire", sniffer(*NETNS["wire"], ETH_P_ALL))]
    observers += [(p, sniffer(*NETNS[p], ETH_P_ALL)) for p in PORTS]
    observers += [("host", sniffer(*NETNS["host"], e)) for e in sorted(ethertypes)]
    injectors = {}
    for place, (netns, device) in NETNS.items():
        with InNetns(netns):
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            s.bind((device, 0))
            injectors[place] = s
    sightings = {c["id"]: [] for c in cases}
    markers = {c["id"]: bytes.fromhex(c["marker"]) for c in cases}

    def collect(seconds):
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([s for _, s in observers], [], [], left)
            for place, s in observers:
                if s not in ready:
                    continue
                try:
                    while True:
                        frame, kind = receive(s)
                        if kind is None:
                            continue
                        for case, marker in markers.items():
                            if marker in frame:
                                sightings[case].append({"at": place, "type": kind, "frame": frame.hex()})
                                break
                except BlockingIOError:
                    pass

    collect(0.3)
    for c in cases:
        try:
            frame = bytes.fromhex(c["frame"])  # sent as its own stack would: with skb->protocol set
            injectors[c["at"]].sendto(frame, (NETNS[c["at"]][1], int.from_bytes(frame[12:14], "big")))
        except OSError as e:
            sightings[c["id"]].append({"at": c["at"], "type": "error", "frame": os.strerror(e.errno)})
        collect(gap)
    deadline = time.monotonic() + limit
    while not until(sightings) and time.monotonic() < deadline:
        collect(0.05)
    collect(settle)
    return {case: sorted(seen, key=lambda s: (s["at"], s["type"], s["frame"])) for case, seen in sightings.items()}


def main():
    command, *arguments = sys.argv[1:]
    if command == "replay":
        json.dump(replay(arguments[0]), sys.stdout, indent=1)
    else:
        {"base": base, "addresses": addresses, "down": down}[command](*arguments)


if __name__ == "__main__":
    main()
