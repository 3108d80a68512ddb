"""Ports and masters that leave, come and can't be made."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from ipvsw._fast import Datapath
from tests.native.interfaces import BROADCAST, FOREIGN, HEADER, MASTER, Interface, between, frame, ipv4, lab, v4, v6

pytestmark = pytest.mark.usefixtures("io")


def test_a_detached_ports_number_and_counters_start_anew() -> None:
    with lab(2) as it:
        it.interfaces[0].send(between(0, 1))
        it.settled(0, 1)
        it.datapath.unbind(v4(0))
        it.datapath.unbind(v6(0))
        it.datapath.detach_port(0)
        it.datapath.commit()
        interface = Interface()
        try:
            assert it.add(interface, 0) == 0
            it.datapath.commit()
            assert it.counted(0).rx_frames == 0
            it.interfaces[1].send(between(1, 0))
            assert interface.receive() == between(1, 0)
            assert it.interfaces[0].waiting() == []
        finally:
            it.datapath.detach_port(0)
            it.datapath.commit()
            interface.close()


def test_the_master_can_leave_and_another_come() -> None:
    with lab(2) as it:
        out = frame(FOREIGN, MASTER, ipv4(v4(0), v4(99)))
        it.datapath.detach_master()
        it.datapath.commit()
        it.interfaces[0].send(out)
        it.settled(0, 1)
        other = Interface()
        try:
            it.datapath.attach_master([other.inside.fileno()], -1, FOREIGN)
            it.datapath.commit()
            it.interfaces[0].send(out)
            assert other.receive() == out
            # The reflected frame is known by the master's MAC, which is another now.
            other.send(frame(BROADCAST, FOREIGN, ipv4(v4(0), b"\xff" * 4)))
            assert it.settled(None, 1).outcomes == {"left_to_host": 1}
            it.datapath.set_master(MASTER)
            it.datapath.commit()
            other.send(frame(BROADCAST, FOREIGN, ipv4(v4(0), b"\xff" * 4)))
            assert it.settled(None, 2).outcomes == {"left_to_host": 1, "to_ports": 1}
        finally:
            it.datapath.detach_master()
            it.datapath.commit()
            other.close()


def test_a_datapath_that_cannot_be_made_touches_nothing() -> None:
    before = socket.socket()
    for bad in (0, -1, "two"):
        with pytest.raises((ValueError, TypeError)):
            Datapath(bad)  # type: ignore[arg-type]
    assert before.fileno() >= 0
    before.getsockname()
    before.close()


def test_bad_arguments_are_refused_and_change_nothing() -> None:
    with lab(1) as it:
        d = it.datapath
        refused = [
            (ValueError, lambda: d.set_mode(9, 0)),
            (ValueError, lambda: d.set_mode(0, 9)),
            (ValueError, lambda: d.set_port(7, up=True, mtu=1500)),
            (OverflowError, lambda: d.set_port(0, up=True, mtu=-1)),
            (ValueError, lambda: d.set_groups(7, [])),
            (ValueError, lambda: d.set_groups(0, [b"short"])),
            (TypeError, lambda: d.set_groups(0, None)),
            (ValueError, lambda: d.detach_port(7)),
            (ValueError, lambda: d.bind(b"12345", 0)),
            (ValueError, lambda: d.bind(v4(0), 7)),
            (TypeError, lambda: d.bind(None, 0)),
            (ValueError, lambda: d.unbind(b"")),
            (ValueError, lambda: d.set_master(b"12345")),
            (ValueError, lambda: d.attach_master([], -1, MASTER)),
            (ValueError, lambda: d.attach_master([0, 0], -1, MASTER)),
            (ValueError, lambda: d.attach_master([0], -1, MASTER, send_fds=[0, 0])),
            (ValueError, lambda: d.traffic(7)),
            (RuntimeError, d.start),
        ]
        for error, call in refused:
            with pytest.raises(error):
                call()  # type: ignore[no-untyped-call]
        d.commit()
        it.interfaces[0].send(between(0, 0))
        assert it.interfaces[0].receive() == between(0, 0)


def test_what_cannot_be_polled_fails_the_commit_and_the_rest_is_made() -> None:
    with lab(2) as it:
        bad = it.datapath.attach_port(9999, 1500)
        it.datapath.bind(v4(9), 1)
        with pytest.raises(OSError, match="1 changes were not made"):
            it.datapath.commit()
        it.datapath.detach_port(bad)
        it.datapath.commit()
        it.interfaces[0].send(between(0, 9))
        assert it.interfaces[1].receive() == between(0, 9)


def test_a_commit_ends_no_sooner_for_a_signal(tmp_path: Path) -> None:
    """The workers use the batch, which is on the stack of `commit`. It reports the failure of its last edit: so it has
    waited for that."""
    caught: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: caught.append(number))
    try:
        with lab(2) as it, open(tmp_path / "file", "wb") as file:
            it.datapath.bind_all([bytes([10, 7, k >> 8 & 255, k & 255]) for k in range(60_000)], 1)
            it.datapath.attach_host(file.fileno())  # which can't be polled
            signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
            with pytest.raises(OSError, match="1 changes were not made"):
                it.datapath.commit()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught


def test_closing_is_for_good_and_may_be_repeated() -> None:
    with lab(1) as it:
        it.datapath.close()
        it.datapath.close()
        assert it.datapath.notify_fd == -1
        with pytest.raises(RuntimeError):
            it.datapath.start()
        assert it.datapath.events() == []


def test_changes_before_the_start_count_and_an_unstarted_datapath_closes() -> None:
    with lab(2, start=False) as it:
        it.interfaces[0].send(between(0, 1), HEADER)
        it.datapath.start()
        assert it.interfaces[1].receive() == between(0, 1)
    with lab(2, start=False) as it:
        it.datapath.set_mode(0, 1)


def test_an_idle_worker_sleeps() -> None:
    """Whatever traffic there was: round trips, which have it look on, and a flood."""
    with lab(2) as it:
        for _ in range(200):
            it.interfaces[0].send(between(0, 1))
            assert it.interfaces[1].receive() == between(0, 1)
            it.interfaces[1].send(between(1, 0))
            assert it.interfaces[0].receive() == between(1, 0)
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.25
