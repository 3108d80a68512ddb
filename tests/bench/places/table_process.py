"""A `Datapath` alone between two TAPs, with many addresses: python -m tests.bench.places.table_process FAMILY ADDRESSES

Says its TAPs' names and how long loading took, as JSON; then answers each line that comes in, with what changing one
address took. Ends with its input.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path as File
from statistics import median

from ipvsw._fast import FLAGS, MODES, Datapath
from ipvsw.linux.devices.tap import open_tap

FIRST4, FIRST6 = 0x0A400000, 0xFD000064 << 96  # 10.64.0.0 and fd00:64::, and upwards
MASTER = "02:00:00:00:00:01"
PAIR4 = {1: "10.1.0.11", 2: "10.1.0.12"}
EDITS = 100


def resident() -> int:
    """Bytes of this process's memory."""
    return int(File("/proc/self/statm").read_text().split()[1]) * 4096


def main(family: int, addresses: int) -> None:
    """All addresses are the second TAP's."""
    taps = [open_tap() for _ in range(2)]
    master, inject = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    datapath = Datapath(1)
    datapath.set_mode(MODES["l2"], FLAGS["bridge"])
    datapath.attach_master([master[0].fileno()], inject[0].fileno(), bytes.fromhex(MASTER.replace(":", "")))
    numbers = [datapath.attach_port(tap.fd, 1500) for tap in taps]
    for k, number in enumerate(numbers, 1):
        datapath.set_port(number, up=True, mtu=1500)
        datapath.bind(socket.inet_aton(PAIR4[k]), number)
    datapath.commit()
    datapath.start()
    size, first = (4, FIRST4) if family == 4 else (16, FIRST6)
    before, start = resident(), time.monotonic()
    for k in range(addresses):
        datapath.bind((first + k).to_bytes(size, "big"), numbers[1])
    datapath.commit()
    facts = {"load_s": time.monotonic() - start, "address_bytes": (resident() - before) / addresses}
    print(json.dumps({"names": [tap.name for tap in taps], "facts": facts}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"edits": edit(datapath, (first + addresses).to_bytes(size, "big"), numbers[1])}), flush=True)


def edit(datapath: Datapath, address: bytes, port: int) -> dict[str, float]:
    """One address in and out again, many times, with the workers at work; in ms for one of the two."""
    took = []
    for _ in range(EDITS):
        for bound in (True, False):
            start = time.monotonic()
            if bound:
                datapath.bind(address, port)
            else:
                datapath.unbind(address)
            datapath.commit()
            took.append((time.monotonic() - start) * 1000)
            time.sleep(0.001)
    return {"edit_ms": median(took), "longest_ms": max(took)}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
