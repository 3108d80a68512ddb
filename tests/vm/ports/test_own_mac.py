"""Real guests with MAC addresses of their own: SLAAC, duplicate detection, LAN peers, and one that means harm."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.support.patience import LIMIT, until
from tests.support.running import Daemon, port, switch, words
from tests.support.sniff import Sniffer, sniffing
from tests.support.topology import MASTER_MAC, WIRE4, WIRE6, Lab, port4, port6
from tests.vm.guest import Guest, booted
from tests.vm.wiretap import KNOWN, clean_wire

pytestmark = pytest.mark.usefixtures("bootable")

NIC = "virtio-net-pci,netdev=n0,mac={mac}"
PREFIX = "fd00:2::"
RADVD = f"""interface w0 {{
  AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; AdvDefaultLifetime 0;
  prefix {PREFIX}/64 {{ AdvOnLink on; AdvAutonomous on; }};
}};
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(1) as made:
        yield made


def machines(lab: Lab, **kinds: str) -> Daemon:
    """A namespace's port, ipvl1, and virtual machines' whose addresses are learned."""
    ports = [port("ipvl1", lab.ports[0], [f"{port4(1)}/16", f"{port6(1)}/64"])]
    ports += [{"name": name, "kind": kind, "learn": True} for name, kind in kinds.items()]
    lan = Daemon(switch("m0", lab.host, ports, host_access="both"), home=lab.home).wait(states=("up", "waiting"))
    until(lambda: lan.port("ipvl1")["state"] == "up", "the namespace's port is up")
    for name in kinds:
        until(lambda: lan.port(name)["reason"] == "for a virtual machine", "the port waits")  # noqa: B023
    return lan


def boot(lan: Daemon, name: str, stack: ExitStack) -> Guest:
    command = [*words("IPVSW", "ipvsw.cli"), "--socket", str(lan.socket), "exec", name, "--"]
    extra = ("-netdev", "tap,id=n0,fd={fd}", "-device", NIC)
    return stack.enter_context(booted(*extra, modules=["virtio_net"], prefix=command, memory=256))


def global_address(guest: Guest) -> str:
    """The one that the guest has made of the advertised prefix, once it is settled."""
    said = guest.run(
        f"while sleep 0.1; do ip -6 addr show dev eth0 scope global -tentative | grep {PREFIX} && exit; done"
    )
    found = re.search(r"inet6 (\S+)/64", said)
    assert found, said
    return found[1]


def test_slaac_duplicates_and_peers(lab: Lab, tmp_path: Path) -> None:
    """Two guests make different addresses by one router's advertisement; a held one is refused; LAN peers find both."""
    config = tmp_path / "radvd.conf"
    config.write_text(RADVD)
    lab.sysctl(lab.wire, "net/ipv6/conf/all/forwarding", "1")
    lab.ip(lab.wire, "addr", "add", f"{PREFIX}fe/64", "dev", "w0", "nodad")
    lan = machines(lab, vm1="macvtap", vm2="tap")
    try:
        with clean_wire(lab), ExitStack() as stack:
            lab.spawn(lab.wire, "radvd", "-n", "-C", str(config), "-p", str(tmp_path / "pid"), "-m", "stderr")
            guests = [boot(lan, name, stack) for name in ("vm1", "vm2")]
            for guest in guests:
                guest.run("ip link set eth0 up")
            addresses = [global_address(guest) for guest in guests]
            macs = [lan.port(name)["mac"] for name in ("vm1", "vm2")]
            assert addresses == [by_mac(mac) for mac in macs] and len({*addresses, *macs, MASTER_MAC}) == 5
            for name, address in zip(("vm1", "vm2"), addresses, strict=True):
                until(lambda: address in held(lan, name), f"{name} has {address}")  # noqa: B023
            held_by = {"sibling": addresses[1], "wire": f"{PREFIX}fe"}
            for who, address in held_by.items():
                said = guests[0].run(
                    f"ip addr add {address}/64 dev eth0;"
                    " until ip addr show dev eth0 | grep dadfailed; do sleep 0.1; done;"
                    f" ip addr del {address}/64 dev eth0"
                )
                assert "dadfailed" in said and address in said, f"held by the {who}: {said}"
            for _ in range(2):
                for address in addresses:
                    lab.reachable(lab.wire, address)
                lab.ip(lab.wire, "-6", "neigh", "flush", "dev", "w0")
            guests[0].run(f"ping -n -q -c 3 -i 0.05 -W {LIMIT:g} {addresses[1]}")
            guests[1].run(f"ping -n -q -c 3 -i 0.05 -W {LIMIT:g} {addresses[0]}")
        lan.stop()
    finally:
        lan.close()


def by_mac(mac: str) -> str:
    """RFC 4291 appendix A."""
    raw = bytes.fromhex(mac.replace(":", ""))
    return str(IPv6Address(IPv6Address(PREFIX).packed[:8] + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]))


def held(lan: Daemon, name: str) -> set[str]:
    """Addresses that the machine has, or has asked about so far."""
    return {one["address"] for one in lan.port(name)["addresses"] if one["state"] in ("owned", "tentative")}


HOSTILE = r"""
import random, socket, struct, sys
rng = random.Random(int(sys.argv[1]))
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sock.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
sock.bind(("eth0", 0))
sent = refused = 0
macs = [bytes.fromhex(text) for text in sys.argv[2:]] + [b"\xff" * 6, bytes.fromhex("333300000001"), bytes(6)]
foreign = lambda: bytes([rng.choice([2, 0, 0x52])]) + rng.randbytes(5)
four = lambda: bytes([10, 1, 9, rng.randrange(256)])  # nobody's: whose address is whose is not the subject
six = lambda: bytes.fromhex("fd00000100000000") + bytes(6) + b"\x09" + rng.randbytes(1)


def send(frame, header=bytes(10)):
    global sent, refused
    try:
        sock.send(header + frame)
        sent += 1
    except OSError:
        refused += 1


def lie():
    return struct.pack("<BBHHHH", rng.choice([0, 1]), rng.choice([0, 0, 1, 3, 4, 5]), rng.choice([0, 14, 60000]),
                       rng.choice([0, 1, 1400]), rng.choice([0, 6, 14, 34, 54, 60000]), rng.choice([0, 2, 6, 8, 16]))


def packet(mac):
    what = rng.randrange(6)
    if what == 0:
        head = bytes.fromhex("000108000604") + struct.pack("!H", rng.choice([1, 2]))
        return b"\x08\x06", head + mac + four() + foreign() + four()
    if what in (1, 2):
        kind, size = rng.choice([(133, 4), (134, 12), (135, 20), (136, 20), (137, 36)])
        option = rng.choice([b"\1\1" + mac, b"\2\1" + foreign(), b"\1\0" + mac, b"\2\2" + mac, b"\1\1" + mac[:2]])
        message = bytes([kind, 0]) + rng.randbytes(2 + size) + option
        return b"\x86\xdd", struct.pack("!IHBB", 6 << 28, len(message), 58, 255) + six() + six() + message
    if what == 3:
        return b"\x81\0\0\5" + rng.choice([b"\x08\x06", b"\x86\xdd", b"\x08\0"]), rng.randbytes(60)
    if what == 4:
        return rng.choice([b"\x88\xcc", b"\0\x26", b"\x80\x35", b"\x90\0"]), rng.randbytes(rng.choice([0, 46, 1400]))
    body = bytes.fromhex("45000028000100004011") + bytes(2) + four() + four() + rng.randbytes(rng.choice([1, 20, 1400]))
    return b"\x08\0", body


for turn in range(4000):
    mac = foreign()
    kind, content = packet(mac)
    send(rng.choice(macs) + mac + kind + content, lie() if turn % 2 else bytes(10))
for size in (14, 15, 1514, 9000, 65500):
    for header in (bytes(10), lie(), struct.pack("<BBHHHH", 1, 1, 54, 1400, 34, 16)):
        send(macs[0] + foreign() + b"\x08\0" + b"\x45" + bytes(size - 14), header)
for turn in range(6000):
    send(b"\xff" * 6 + foreign() + b"\x88\xb5" + bytes(46))
print("sent", sent, "refused", refused)
"""


def test_a_hostile_guest_hurts_nobody_but_itself(lab: Lab, tmp_path: Path) -> None:
    lan = machines(lab, vm1="macvtap")
    try:
        with ExitStack() as stack:
            wire = stack.enter_context(sniffing(lab.wire, "w0"))
            sibling = stack.enter_context(sniffing(lab.ports[0], "ipvl1"))
            guest = boot(lan, "vm1", stack)
            own = lan.port("vm1")["mac"]
            guest.run("ip link set eth0 up; ip addr add 10.1.0.50/16 dev eth0")
            guest.run(f"ping -n -q -c 1 -W {LIMIT:g} {WIRE4}")
            known = " ".join(mac.hex() for mac in KNOWN)
            pings = lab.spawn(lab.ports[0], "ping", "-n", "-q", "-c", "50", "-i", "0.1", "-W", f"{LIMIT}", WIRE4)
            said = guest.run(
                f"cat >/tmp/hostile <<'END'\n{HOSTILE}\nEND\npython3 /tmp/hostile 7 {known}",
            )
            sent = int(said.split()[1])
            assert sent > 5000, said
            heard, _ = pings.communicate(timeout=LIMIT)
            assert "50 received" in heard, heard
            for address in (port4(1), port6(1)):
                lab.reachable(lab.wire, address)
            for address in (WIRE4, WIRE6):
                lab.reachable(lab.ports[0], address)
            ends = lan.stats()[0]["ports"]["vm1"]
            assert ends["rx_frames"] == sum(ends["outcomes"].values())
            assert ends["outcomes"]["drop_macnat"] > 100 and ends["outcomes"]["drop_bad_header"] > 10, ends
            guest.run(f"ping -n -q -c 1 -W {LIMIT:g} {WIRE4}")
        for sniffer in (wire, sibling):
            faults = told(sniffer, bytes.fromhex(own.replace(":", "")))
            assert not faults, dict(faults)
        lan.stop()
    finally:
        lan.close()


def told(sniffer: Sniffer, own: bytes) -> Counter[str]:
    """What frames say of their senders' MAC addresses that isn't so."""
    faults: Counter[str] = Counter()
    assert len(sniffer.frames) > 100
    for _, frame in sniffer.frames:
        source, kind, packet = frame[6:12], frame[12:14], frame[14:]
        if source not in KNOWN:
            faults[f"source {source.hex()}"] += 1
        if kind == b"\x08\x06" and packet[8:14] not in KNOWN:
            faults[f"ARP sender {packet[8:14].hex()}"] += 1
        if kind == b"\x86\xdd" and packet[6] == 58 and 133 <= packet[40] <= 137:
            length = struct.unpack_from("!H", packet, 4)[0]
            faults.update(f"option {mac.hex()}" for mac in link_layer(packet[40 : 40 + length]) if mac not in KNOWN)
        if own in frame[6:]:
            faults["the guest's own address"] += 1
    return faults


def link_layer(message: bytes) -> Iterator[bytes]:
    options = message[{133: 8, 134: 16, 137: 40}.get(message[0], 24) :]
    while len(options) >= 8 and options[1]:
        if options[0] in (1, 2):
            yield options[2:8]
        options = options[8 * options[1] :]
