"""A program that sends to one new destination after the other:

    scanner.py DEVICE SOURCE FIRST RATE SECONDS PAYLOAD

One frame for each address from FIRST on, RATE a second: UDP, or with a PAYLOAD a TCP GSO frame of so many bytes.
Prints how many it has sent.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from ipaddress import ip_address

SOL_PACKET, PACKET_VNET_HDR = 263, 15
NEEDS_CSUM, TCPV4 = 1, 1  # virtio_net_hdr
BURST = 500  # frames between two looks at the clock


def main(device: str, source: str, first: str, rate: int, seconds: float, payload: int) -> int:
    """The number of frames that were sent."""
    by, to = ip_address(source).packed, int(ip_address(first))
    if payload:
        header = struct.pack("=BBHHHH", NEEDS_CSUM, TCPV4, 54, 1400, 34, 16)
        segment = struct.pack("!HHIIBBHHH", 9, 9, 1, 1, 0x50, 0x10, 1000, 0, 0) + bytes(payload)
    else:
        header, segment = bytes(10), struct.pack("!HHHH", 9, 9, 16, 0) + bytes(8)
    front = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, 6 if payload else 17, 0) + by
    front = header + bytes.fromhex("020000000001") * 2 + b"\x08\x00" + front
    sent, start = 0, time.monotonic()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind((device, 0))
        while (passed := time.monotonic() - start) < seconds:
            due = int(passed * rate) - sent
            if due <= 0:
                time.sleep(0.0005)
            for _ in range(min(due, BURST)):
                sent += 1
                sock.send(front + (to + sent).to_bytes(4, "big") + segment)
    return sent


if __name__ == "__main__":
    device, source, first, rate, seconds, payload = sys.argv[1:]
    print(main(device, source, first, int(rate), float(seconds), int(payload)))
