"""The shim's map of addresses, asked by running the program that looks into it."""

from __future__ import annotations

import ctypes
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvsw._fast import MODES
from ipvsw.linux import bpf
from ipvsw.linux.bpf import Shim
from tests.netns.kernel.bpf_run import returned
from tests.support.patience import LIMIT

TC_ACT_OK, TC_ACT_SHOT, TC_ACT_REDIRECT = 0, 2, 7
PATIENCE = 5.0  # seconds; PATIENCE_NS of lib/steal.h


def is_stolen(one: Shim, address: bytes) -> bool:
    """What becomes of a frame for that address that the master receives."""
    if len(address) == 4:
        packet = b"\x08\0\x45\0\0\x14" + bytes(12) + address
    else:
        packet = b"\x86\xdd\x60" + bytes(7) + b"\xfd" + bytes(15) + address
    result = returned(one.ingress_fd, bytes(12) + packet + bytes(21))
    assert result in (TC_ACT_OK, TC_ACT_SHOT)
    return result == TC_ACT_SHOT


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shim]:
    """One whose first map is soon full."""
    monkeypatch.setattr(bpf, "CAPACITY", 8)
    before = len(os.listdir("/proc/self/fd"))
    one = Shim()
    one.set_mode(MODES["l2"])
    try:
        yield one
    finally:
        one.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_addresses_are_stolen_however_many_there_are_and_given_back(small: Shim) -> None:
    rng = random.Random(3)
    addresses = [rng.randbytes(4) for _ in range(3000)] + [rng.randbytes(16) for _ in range(3000)]
    addresses = [bytes([10 if len(one) == 4 else 0xFD]) + one[1:] for one in dict.fromkeys(addresses)]
    rng.shuffle(addresses)
    there: set[bytes] = set()
    left = list(dict.fromkeys(addresses))
    while left:
        some, left = left[: (size := rng.choice([1, 1, 7, 500]))], left[size:]
        assert not is_stolen(small, some[0])
        small.add(some)
        there.update(some)
        assert all(is_stolen(small, one) for one in (*some[:3], *rng.sample(sorted(there), min(5, len(there)))))
    assert all(is_stolen(small, one) for one in there)
    gone = rng.sample(sorted(there), 2000)
    small.remove(gone[:1000])
    for one in gone[1000:]:
        small.remove([one])
    assert not any(is_stolen(small, one) for one in gone)
    assert all(is_stolen(small, one) for one in there - set(gone))


def test_what_was_there_stays_through_a_growth_that_was_foretold(small: Shim) -> None:
    first = [bytes([10, 0, 0, k]) for k in range(5)]
    small.add(first)
    small.expect(1000)
    assert all(is_stolen(small, one) for one in first)
    small.add([bytes([10, 1, k >> 8, k & 255]) for k in range(1000)])
    assert all(is_stolen(small, one) for one in first)


def test_removing_is_done_with_all_though_one_is_missing(small: Shim) -> None:
    here = [bytes([10, 0, 0, k]) for k in range(20)]
    small.add(here)
    small.remove([bytes([10, 9, 9, 9])])
    small.remove([here[0], bytes([10, 9, 9, 9]), *here[1:]])
    assert not any(is_stolen(small, one) for one in here)


def test_a_map_that_cannot_be_made_larger_says_so_and_keeps_what_it_has(
    small: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [bytes([10, 0, 0, k]) for k in range(8)]
    small.add(here)

    class Refusing:
        def __getattr__(self, name: str) -> object:
            return (lambda *_: -12) if name == "bpf_map_create" else getattr(library, name)

    library = small._lib
    monkeypatch.setattr(small, "_lib", Refusing())
    with pytest.raises(OSError, match="creating a BPF map"):
        small.add([bytes([10, 0, 1, 1])])
    assert all(is_stolen(small, one) for one in here)
    monkeypatch.setattr(small, "_lib", library)
    small.add([bytes([10, 0, 1, 1])])
    assert is_stolen(small, bytes([10, 0, 1, 1]))


def test_a_key_is_an_address() -> None:
    with pytest.raises(ValueError, match="4 or 16 bytes"):
        bpf._keys([b"12345"])
    assert Path(bpf._OBJECT).exists()


def last_beat(shim: Shim, ago: float) -> None:
    """The daemon's heartbeat ended so many seconds ago."""
    assert shim._heartbeat is not None
    shim._heartbeat.stop()
    value = (time.monotonic_ns() - int(ago * 1e9)).to_bytes(8, sys.byteorder)
    fd = shim._lib.bpf_map__fd(shim._map("heartbeat"))
    assert shim._lib.bpf_map_update_elem(fd, bytes(4), value, ctypes.c_uint64(0)) == 0


def test_a_daemon_without_a_heartbeat_leaves_everything_to_the_host(small: Shim) -> None:
    here = bytes([10, 0, 0, 1])
    frame = b"\2\0\0\0\0\1" * 2 + b"\x08\0\x45\0\0\x14" + bytes(12) + here + bytes(26)
    small.add([here])
    small.assign([here], owner=0, diverted=True)
    small.set_host_ifindex(1)
    for ago, stolen in ((0.0, True), (PATIENCE - 2, True), (PATIENCE + 0.1, False), (30.0, False)):
        last_beat(small, ago)
        assert is_stolen(small, here) is stolen
        assert (returned(small.egress_fd, frame) == TC_ACT_REDIRECT) is stolen


def test_the_heartbeat_is_the_kernels_time(small: Shim) -> None:
    fd = small._lib.bpf_map__fd(small._map("heartbeat"))
    value = ctypes.create_string_buffer(8)
    seen = set()
    deadline = time.monotonic() + LIMIT
    while len(seen) < 3:
        assert time.monotonic() < deadline, "it does not beat"
        assert small._lib.bpf_map_lookup_elem(fd, bytes(4), value) == 0
        beat = int.from_bytes(value.raw, sys.byteorder)
        assert 0 <= time.monotonic_ns() - beat < LIMIT * 1e9
        seen.add(beat)
        time.sleep(0.01)
