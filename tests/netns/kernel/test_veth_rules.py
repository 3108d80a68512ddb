"""What the kernel decides by itself it decides as rules/decide.pxd does: every frame of a port or from the wire goes
where the data plane would have sent it, or to the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ipvsw._fast import ACCESS, FLAGS, MODES, OUTCOMES
from ipvsw.linux.bpf import Shim
from ipvsw.linux.fastports import THE_MASTER, FastCounts, FastDevice, FastFlag
from ipvsw.linux.netlink import Handle
from ipvsw.linux.shim.traced import FastReason, FastVerdict
from tests.native._decider import Decider
from tests.native.random_frames import FOREIGN, MASTER, random_frame, random_switch, seed_from_environment
from tests.netns.kernel.bpf_run import returned
from tests.netns.kernel.test_shim_rules import CORPUS, can_be_run, untagged
from tests.reference.rules import Switch
from tests.support.spaces import Namespace

TC_ACT_SHOT, TC_ACT_REDIRECT = 2, 7
FRAMES = int(os.environ.get("IPVSW_FRAMES", "27000"))  # random ones, of all modes and flags together
FRAMES_PER_SWITCH = 300
TAP = 1 << 20  # the index of the TAP of the device with the index 0
MOST_PORTS = 6
GSO_SIZE = 1000
MODE_FLAGS = [(mode, flag) for mode in MODES for flag in FLAGS]
SHORT_MTU = 200  # bytes: of a master that refuses some frames


class Rig:
    """The programs, on devices of a namespace, beside a `Decider` of the same switch. Of its ports those in `fast` have
    such devices, and of them those in `slow` have something set that the programs don't know."""

    def __init__(self, shim: Shim, switch: Switch, devices: list[int], master: int, rng: random.Random) -> None:
        self.shim, self.switch, self.master = shim, switch, master
        numbers = range(len(switch.ports))
        self.fast = {n: FastDevice(devices[n], TAP + n, rng.random() < 0.2) for n in numbers if rng.random() < 0.8}
        self.slow = {n for n in self.fast if rng.random() < 0.2}
        ports = [(port.up, port.mtu, False, []) for port in switch.ports]
        mode, flag, access = MODES[switch.mode], FLAGS[switch.flag], ACCESS[switch.access]
        self.decider = Decider(mode, flag, MASTER, ports, switch.table, switch.host, access)
        shim.set_mode(mode)
        shim.set_fast_rules(mode, flag, switch.access != "none")
        shim.set_master_ifindex(master)
        for number, device in self.fast.items():
            port = switch.ports[number]
            flags = FastFlag.UP if port.up else FastFlag(0)
            if number not in self.slow:
                flags |= FastFlag.SENDS | FastFlag.RECEIVES
            shim.fast.put(device, port.mtu, flags)
        for address, number in switch.table.items():
            shim.add([address], self.fast[number].end if number in self.fast else 0)
        self.found: Counter[str] = Counter()
        self.reasons: Counter[FastReason] = Counter()

    def close(self) -> None:
        self.shim.remove(list(self.switch.table))
        for device in self.fast.values():
            self.shim.fast.remove(device)

    def check_from_port(self, number: int, frame: bytes, gso: bool) -> None:
        end = self.fast[number].end
        before, received = self.shim.fast.counts(end), self.received()
        told = self.told(frame, end, GSO_SIZE if gso else 0, from_master=False)
        assert (self.shim.fast.counts(end), self.received()) == (before, received), "a trace counts nothing"
        assert returned(self.shim.port_fd, frame, end, GSO_SIZE if gso else 0) == TC_ACT_REDIRECT
        after = self.shim.fast.counts(end)
        assert told.reason is not FastReason.RESTRICTED or number in self.slow
        assert self.is_told(told, received) is (after.rx_frames > before.rx_frames), (told, frame.hex())
        if after.rx_frames == before.rx_frames:
            assert self.received() == received
            self.found["slow"] += 1
            return
        assert number not in self.slow
        assert after.rx_bytes - before.rx_bytes == len(frame)
        self.check(self.decider.from_port(frame, gso), frame, received, after.to_master > before.to_master)

    def check_from_master(self, frame: bytes) -> None:
        received = self.received()
        verdict = self.decider.from_master(frame)
        told = self.told(frame, self.master, 0, from_master=True)
        assert self.received() == received, "a trace counts nothing"
        action = returned(self.shim.ingress_fd, frame, self.master)
        # For a socket filter the test run takes an Ethernet header off, which a packet socket has put back by then.
        passed = returned(self.shim.filter_fd, frame[:14] + frame, self.master) != 0
        assert self.is_told(told, received) is (action == TC_ACT_REDIRECT), (told, frame.hex())
        if action == TC_ACT_REDIRECT:
            assert not passed, frame.hex()
            self.check(verdict, frame, received, False)
        else:
            assert self.received() == received
            self.found["slow"] += action == TC_ACT_SHOT  # of these test_shim_rules says the rest

    def check(self, verdict: tuple[int, int], frame: bytes, received: dict[int, int], to_master: bool) -> None:
        """One that the kernel forwarded."""
        about = (frame.hex(), self.switch, self.fast)
        outcome = (*OUTCOMES, "to_route")[verdict[0]]
        assert outcome == ("to_master" if to_master else "to_port"), about
        target = THE_MASTER if to_master else self.fast[verdict[1]].end
        assert self.received() == received | {target: received[target] + 1}, about
        assert to_master or verdict[1] not in self.slow, about
        assert not is_dhcp(frame), about
        self.found[outcome] += 1

    def told(self, frame: bytes, device: int, gso_size: int, *, from_master: bool) -> FastVerdict:
        """What `ipvsw trace` says of it."""
        verdict = self.shim.trace(frame, device, gso_size, from_master=from_master)
        assert verdict is not None
        self.reasons[verdict.reason] += 1
        return verdict

    def is_told(self, verdict: FastVerdict, received: dict[int, int]) -> bool:
        """Whether the frame is forwarded, and to whom: to the one that has got it since."""
        if verdict.reason is not FastReason.FORWARDED:
            return False
        assert self.received() == received | {verdict.to: received[verdict.to] + 1}, verdict
        return True

    def received(self) -> dict[int, int]:
        keys = [THE_MASTER, *(device.end for device in self.fast.values())]
        all_counts = self.shim.fast.all_counts()
        counts = {key: self.shim.fast.counts(key) for key in keys}
        assert all_counts.keys() >= {key for key in keys if counts[key] != FastCounts()}
        assert counts == {key: all_counts.get(key, FastCounts()) for key in keys}
        return {key: counts[key].tx_frames for key in keys}


def is_dhcp(frame: bytes) -> bool:
    """UDP to one of its ports."""
    packet = frame[14:]
    if frame[12:14] == b"\x08\0" and packet[9] == 17:
        start = (packet[0] & 15) * 4
        return packet[start + 2 : start + 4] in (b"\0\x43", b"\0\x44")
    return frame[12:14] == b"\x86\xdd" and packet[6] == 17 and packet[42:44] in (b"\2\x22", b"\2\x23")


def make_devices(space: Namespace) -> tuple[int, list[int]]:
    """The indices of a master and of devices that stand for host ends, all with the master's MAC address."""
    names = ["m0", *(f"e{n}" for n in range(MOST_PORTS))]
    for name in names:
        space.ip("link", "add", name, "address", MASTER.hex(":"), "type", "veth", "peer", "name", f"{name}p")
    space.ip("link", "set", "m0", "mtu", str(SHORT_MTU))

    def find() -> list[int]:
        with Handle.opened() as handle:
            return [link.index for name in names if (link := handle.link(name)) is not None]

    master, *ends = space.inside(find)
    return master, ends


@pytest.mark.parametrize(("mode", "flag"), MODE_FLAGS)
def test_random_frames_go_where_the_data_plane_would_send_them(
    mode: str, flag: str, netns: Callable[[], Namespace]
) -> None:
    rng = random.Random(seed_from_environment())
    space = netns()
    master, ends = make_devices(space)
    found: Counter[str] = Counter()
    reasons: Counter[FastReason] = Counter()

    def run() -> None:
        for n in range(FRAMES // len(MODE_FLAGS) // FRAMES_PER_SWITCH):
            rig = Rig(shim, random_switch(rng, mode, flag, list(ACCESS)[n % 4]), ends, master, rng)
            for _ in range(FRAMES_PER_SWITCH):
                frame = untagged(random_frame(rng))
                if not can_be_run(frame):
                    continue
                if rig.fast:
                    rig.check_from_port(rng.choice(list(rig.fast)), frame, rng.random() < 0.3)
                rig.check_from_master(frame)
            found.update(rig.found)
            reasons.update(rig.reasons)
            rig.close()

    with contextlib.closing(Shim()) as shim:
        space.inside(run)
    print(dict(found), dict(reasons))
    assert found["slow"]
    assert reasons[FastReason.FORWARDED] == found["to_master"] + found["to_port"]
    assert reasons[FastReason.NOT_IP] and len(reasons) >= 4
    assert bool(found["to_master"]) is (mode == "l2")
    assert bool(found["to_port"]) is (mode != "l3s" or flag == "bridge")


@pytest.mark.parametrize(("mode", "flag"), MODE_FLAGS)
def test_the_corpus_goes_where_the_data_plane_would_send_it(
    mode: str, flag: str, netns: Callable[[], Namespace]
) -> None:
    cases = json.loads(Path(CORPUS).read_text())
    space = netns()
    master, ends = make_devices(space)
    space.ip("link", "set", "m0", "mtu", "1500")

    def run() -> None:
        rng = random.Random(1)
        switch = random_switch(rng, mode, flag)
        ports = [type(switch.ports[0])(up=True, mtu=1500, all_multicast=False, groups=set()) for _ in range(3)]
        table = {bytes([10, 1, 0, 11 + k]): k for k in range(3)}
        table |= {bytes.fromhex("fd000001" + "00" * 11) + bytes([0x11 + k]): k for k in range(3)}
        switch.ports, switch.table, switch.host, switch.vlans = ports, table, set(), set()
        rig = Rig(shim, switch, ends, master, rng)
        for case in cases:
            frame = untagged(bytes.fromhex(case["frame"]))
            if not can_be_run(frame):
                continue
            if case["at"] == "wire":
                rig.check_from_master(frame)
            elif case["at"] != "host" and int(case["at"][1]) - 1 in rig.fast:
                rig.check_from_port(int(case["at"][1]) - 1, frame, False)
        assert rig.found["to_port"] or mode == "l3s" or flag != "bridge"
        rig.close()

    with contextlib.closing(Shim()) as shim:
        space.inside(run)


def test_what_the_daemon_reads_on_its_way_is_left_to_it(netns: Callable[[], Namespace]) -> None:
    """DHCP, and UDP whose ports are behind options."""
    space = netns()
    master, ends = make_devices(space)
    source, target = bytes([10, 1, 0, 1]), bytes([10, 1, 0, 2])
    source6, target6 = (bytes.fromhex("fd000001" + "00" * 11) + bytes([last]) for last in (1, 2))
    device, other = (FastDevice(end, TAP + n, same_netns=False) for n, end in enumerate(ends[:2]))

    def udp(version: int, to: int, options: bytes = b"") -> bytes:
        datagram = struct.pack("!4H", 1000, to, 8, 0)
        if version == 6:
            return b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, 8, 17, 64) + source6 + target6 + datagram
        words = 5 + len(options) // 4
        head = struct.pack("!BBHHHBBH", 0x40 | words, 0, 4 * words + 8, 0, 0, 64, 17, 0)
        return b"\x08\0" + head + source + target + options + datagram

    def is_forwarded(packet: bytes, to: bytes) -> bool:
        """From the port, and if it is for the other one from the wire too."""
        frame = to + MASTER + packet
        before = shim.fast.counts(device.end).rx_frames
        assert returned(shim.port_fd, frame, device.end) == TC_ACT_REDIRECT
        forwarded = shim.fast.counts(device.end).rx_frames > before
        if to == MASTER:
            wire = returned(shim.ingress_fd, to + b"\2" + bytes(5) + packet, master) == TC_ACT_REDIRECT
            assert wire is forwarded
        return forwarded

    def run() -> None:
        for to in (MASTER, FOREIGN):
            for port in (66, 67, 68, 69, 545, 546, 547, 548):
                assert is_forwarded(udp(4, port), to) is (port not in (67, 68))
                assert is_forwarded(udp(6, port), to) is (port not in (546, 547))
            assert not is_forwarded(udp(4, 69, bytes([1] * 4)), to)

    with contextlib.closing(Shim()) as shim:
        shim.set_mode(MODES["l2"])
        shim.set_fast_rules(MODES["l2"], FLAGS["bridge"], False)
        shim.set_master_ifindex(master)
        for one in (device, other):
            shim.fast.put(one, 1500, FastFlag.UP | FastFlag.SENDS | FastFlag.RECEIVES)
        shim.add([target, target6], other.end)
        space.inside(run)
