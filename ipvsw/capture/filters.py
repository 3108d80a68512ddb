"""Filter expressions (pcap-filter(7)), which libpcap compiles and runs. The only user of libpcap."""

from __future__ import annotations

import ctypes

ETHERNET = 1  # link type
LONGEST = 262144  # bytes of a frame
ANY_NETMASK = 0xFFFFFFFF  # PCAP_NETMASK_UNKNOWN


class BadFilter(Exception):
    """One line that says what is wrong."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _Header(ctypes.Structure):
    """struct pcap_pkthdr"""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


class Filter:
    """One expression. Errors: BadFilter."""

    def __init__(self, expression: str) -> None:
        try:
            library = ctypes.CDLL("libpcap.so.0.8")
        except OSError:
            raise BadFilter("filters need libpcap (Debian: apt install libpcap0.8)") from None
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_geterr.restype = ctypes.c_char_p
        library.pcap_offline_filter.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
        handle = ctypes.c_void_p(library.pcap_open_dead(ETHERNET, LONGEST))
        program = _Program()
        if library.pcap_compile(handle, ctypes.byref(program), expression.encode(), 1, ANY_NETMASK) < 0:
            raise BadFilter(f"{expression}: {library.pcap_geterr(handle).decode(errors='replace')}")
        self._match = library.pcap_offline_filter
        self._kept = program, _Header()
        self._program, self._header = map(ctypes.byref, self._kept)

    def matches(self, frame: bytes) -> bool:
        header = self._kept[1]
        header.captured = header.length = len(frame)
        return bool(self._match(self._program, self._header, frame))
