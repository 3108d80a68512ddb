"""What is on the system: namespaces, devices, traffic control, BPF objects, descriptors. For before and after."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
from pathlib import Path

from tests.support.patience import until
from tests.support.topology import Lab, run

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
MAP_GET_NEXT_KEY, PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID = 4, 13, 14


def _bpf(command: int, attribute: ctypes.Array[ctypes.c_uint8]) -> int:
    """The system call. Errors: OSError."""
    result: int = _libc.syscall(_SYS_BPF, command, ctypes.byref(attribute), len(attribute))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _attribute(content: bytes) -> ctypes.Array[ctypes.c_uint8]:
    return (ctypes.c_uint8 * 64).from_buffer_copy(content.ljust(64, b"\0"))


def bpf_exists(program: bool, number: int) -> bool:
    """Whether the kernel still has the program (or map) with this id."""
    try:
        fd = _bpf(PROG_GET_FD_BY_ID if program else MAP_GET_FD_BY_ID, _attribute(number.to_bytes(4, "little")))
    except FileNotFoundError:
        return False
    os.close(fd)
    return True


def bpf_held_by(pid: int) -> tuple[set[int], set[int]]:
    """Ids of the programs and of the maps that a process holds by an fd."""
    programs, maps = set(), set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            text = info.read_text()
            if found := re.search(r"^prog_id:\s+(\d+)", text, re.MULTILINE):
                programs.add(int(found[1]))
            if found := re.search(r"^map_id:\s+(\d+)", text, re.MULTILINE):
                maps.add(int(found[1]))
    return programs, maps


def map_entries(number: int) -> int:
    """How many keys a BPF map has."""
    fd = _bpf(MAP_GET_FD_BY_ID, _attribute(number.to_bytes(4, "little")))
    try:
        found = re.search(r"key_size:\s+(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text())
        assert found
        key, following = ((ctypes.c_uint8 * int(found[1]))() for _ in range(2))
        count, at = 0, 0
        while True:
            content = fd.to_bytes(8, "little") + at.to_bytes(8, "little")
            content += ctypes.addressof(following).to_bytes(8, "little")
            try:
                _bpf(MAP_GET_NEXT_KEY, _attribute(content))
            except FileNotFoundError:
                return count
            count += 1
            ctypes.memmove(key, following, len(key))
            at = ctypes.addressof(key)
    finally:
        os.close(fd)


def tc_programs(netns: str, device: str) -> set[int]:
    """Ids of the BPF programs attached to a device's clsact."""
    text = "".join(
        run("tc", "-n", netns, "filter", "show", "dev", device, where, check=False) for where in ("ingress", "egress")
    )
    return {int(number) for number in re.findall(r"\bid (\d+)\b", text)}


def network(lab: Lab) -> dict[str, object]:
    """Namespaces of the lab with their devices, queueing disciplines and filters."""
    seen: dict[str, object] = {"namespaces": sorted(n for n in os.listdir("/run/netns") if n.startswith(lab.prefix))}
    for netns in (lab.home, lab.host, lab.wire, *lab.ports):
        if not Path("/run/netns", netns).exists():
            continue
        links = json.loads(run("ip", "-n", netns, "-j", "link", "show"))
        seen[f"{netns} links"] = sorted(
            (link["ifname"], "PROMISC" in link["flags"], "ALLMULTI" in link["flags"]) for link in links
        )
        seen[f"{netns} qdiscs"] = run("tc", "-n", netns, "qdisc", "show")
        for link in links:
            for where in ("ingress", "egress"):
                seen[f"{netns} {link['ifname']} {where}"] = run(
                    "tc", "-n", netns, "filter", "show", "dev", link["ifname"], where, check=False
                )
        seen[f"{netns} groups"] = sorted(line.split()[1:] for line in lab.read(netns, "dev_mcast").splitlines())
    return seen


def gone(programs: set[int], maps: set[int]) -> None:
    """The kernel frees BPF objects a moment after their last user."""
    until(
        lambda: not any(bpf_exists(True, n) for n in programs) and not any(bpf_exists(False, n) for n in maps),
        f"BPF programs {sorted(programs)} and maps {sorted(maps)} are freed",
    )
