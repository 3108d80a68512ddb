"""`ipvsw capture` and Wireshark's `ipvsw-extcap`, with tshark as who reads it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.patience import LIMIT, until
from tests.support.running import ROOT, Daemon, port, switch, tool_at
from tests.support.sniff import raw
from tests.support.topology import WIRE4, Lab, port4
from tests.support.traffic import tcp
from tests.support.wire.frames import udp4

PINGS = 5
FIELDS = ("frame.interface_name", "frame.packet_flags_direction", "frame.verdict.ebpf_tc", "frame.comment", "ip.src")


@contextlib.contextmanager
def capturing(daemon: Daemon, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`ipvsw capture`, which has begun; at the end Ctrl-C."""
    command = [*tool_at(daemon.socket), "capture", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stdout is not None
    try:
        assert process.stderr.readline().startswith("ipvsw: capturing at ")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def finished(process: subprocess.Popen[str], *, counted: bool = False) -> tuple[str, str]:
    """What it has said once it has ended, well: by itself if frames were `counted`, else by Ctrl-C."""
    if not counted:
        process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, complaints
    return said, complaints


def dissected(path: Path, fields: Sequence[str] = FIELDS, *more: str) -> list[list[str]]:
    """The fields of each frame, as tshark has them, which has nothing to complain of."""
    command = ["tshark", "-r", str(path), "-T", "fields", *(word for field in fields for word in ("-e", field)), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=os.environ | {"HOME": "/tmp"})
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("Running as user")]
    assert done.returncode == 0 and complaints == [], done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return [[value.replace("0x0000000", "") for value in values] for values in lines]


def holds(path: Path, count: int) -> bool:
    """Whether the file has so many frames by now."""
    return path.exists() and path.read_bytes().count(b"delivered: ") + path.read_bytes().count(b"sent, from") >= count


def test_tshark_shows_each_frame_with_its_interface_and_its_fate(lab: Lab, lan: Daemon, tmp_path: Path) -> None:
    lab.reachable(lab.ports[0], port4(2))
    file = tmp_path / "seen.pcapng"
    with capturing(lan, "lan", "-w", str(file), "--filter", "icmp") as process:
        assert lab.ping(lab.ports[0], port4(2), PINGS) == PINGS
        until(lambda: holds(file, 4 * PINGS), "requests and replies, each read and written")
        _, complaints = finished(process)
    assert f"{4 * PINGS} frames captured, 0 lost" in complaints
    found = dissected(file)
    reason = "the port that owns the destination address gets it"
    assert (
        found
        == [
            ["lan/ipvl1", "1", "0", f"delivered: to_port lan/ipvl2: {reason}", port4(1)],
            ["lan/ipvl2", "2", "", "sent, from lan/ipvl1", port4(1)],
            ["lan/ipvl2", "1", "0", f"delivered: to_port lan/ipvl1: {reason}", port4(2)],
            ["lan/ipvl1", "2", "", "sent, from lan/ipvl2", port4(2)],
        ]
        * PINGS
    )


def test_the_wire_has_the_masters_name(lab: Lab, lan: Daemon, tmp_path: Path) -> None:
    lab.reachable(lab.ports[0], WIRE4)
    file = tmp_path / "seen.pcapng"
    with capturing(lan, "m0", "-w", str(file), "--filter", "icmp", "-n", str(2 * PINGS)) as process:
        assert lab.ping(lab.ports[0], WIRE4, PINGS) == PINGS
        finished(process, counted=True)
    assert {(name, way) for name, way, *_ in dissected(file)} == {("m0", "1"), ("m0", "2")}


def test_what_is_dropped_is_there_with_the_reason(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "seen.pcapng"
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"], guard="strict") for k, netns in enumerate(lab.ports, 1)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait()
        with capturing(daemon, "ipvl1", "-w", str(file), "--filter", "udp port 7", "-n", "1") as process:
            with raw(lab.ports[0], "ipvl1") as device:
                device.send(udp4(port4(2), WIRE4, b"spoofed", ports=(7, 2222)))
            finished(process, counted=True)
        ((name, way, verdict, comment, source),) = dissected(file)
    assert (name, way, verdict, source) == ("lan/ipvl1", "1", "2", port4(2))
    assert comment.startswith("dropped: guard_ip_source: guard ip-source: ")


def test_gso_frames_are_whole(lab: Lab, lan: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "seen.pcapng"
    with capturing(lan, "ipvl1", "-w", str(file), "--filter", "tcp and greater 2000", "-n", "1") as process:
        tcp(lab.ports[0], lab.ports[1], port4(2))
        finished(process, counted=True)
    ((length, comment),) = dissected(file, ("frame.len", "frame.comment"))
    assert int(length) > 5000 and "a GSO frame, of segments of " in comment


def test_it_goes_into_the_next_program(lab: Lab, lan: Daemon) -> None:
    lab.reachable(lab.ports[0], port4(2))
    with capturing(lan, "ipvl1", "-w", "-") as process:
        command = ["tcpdump", "-n", "-c", "2", "-r", "-", "icmp"]
        pipes = {"stdin": process.stdout, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        reader = subprocess.Popen(command, **pipes, text=True)
        assert process.stdout is not None
        process.stdout.close()  # the reader's alone: when it ends there is nobody to write to
        assert lab.ping(lab.ports[0], port4(2), PINGS) == PINGS
        said, complaints = reader.communicate(timeout=LIMIT)
        assert said.count("ICMP echo") == 2, complaints

        def ended() -> bool:
            lab.ping(lab.ports[0], port4(2))
            return process.poll() is not None

        until(ended, "the capture ends with its reader")
        assert process.returncode == 0


def test_lines_tell_it_without_another_program(lab: Lab, lan: Daemon) -> None:
    lab.reachable(lab.ports[0], port4(2))
    with capturing(lan, "ipvl1", "--filter", "icmp", "-n", "2") as process:
        assert lab.ping(lab.ports[0], port4(2)) == 1
        lines = finished(process, counted=True)[0].splitlines()
    assert f"lan/ipvl1 in   98 bytes, IPv4 {port4(1)} -> {port4(2)}: delivered: to_port lan/ipvl2: " in lines[0]
    assert f"lan/ipvl1 out  98 bytes, IPv4 {port4(2)} -> {port4(1)}: sent, from lan/ipvl2" in lines[1]


def test_a_veth_port_is_the_daemons_while_it_is_captured(lab: Lab, tmp_path: Path) -> None:
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"], device="veth") for k, netns in enumerate(lab.ports, 1)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait()
        lab.reachable(lab.ports[0], port4(2))
        until(lambda: daemon.port("ipvl1")["path"] == "fast", "the kernel forwards")
        file = tmp_path / "seen.pcapng"
        with capturing(daemon, "ipvl1", "-w", str(file), "--filter", "icmp", "-n", str(2 * PINGS)) as process:
            assert daemon.port("ipvl1")["path"] == "slow (capture)" and daemon.port("ipvl2")["path"] == "fast"
            assert lab.ping(lab.ports[0], port4(2), PINGS) == PINGS
            finished(process, counted=True)
        assert len(dissected(file)) == 2 * PINGS
        until(lambda: daemon.port("ipvl1")["path"] == "fast", "the kernel forwards again")


def test_a_port_that_comes_later_is_captured_too(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "seen.pcapng"
    first, second = (port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports, 1))
    with Daemon(switch("m0", lab.host, [first]), home=lab.home) as daemon:
        daemon.wait()
        with capturing(daemon, "lan", "-w", str(file), "--filter", "icmp") as process:
            body = {"master": "m0", "name": "ipvl2", "netns": second["netns"], "addresses": second["addresses"]}
            status, answer = daemon.call("POST", "/v1/ports", body)
            assert status == 201, answer
            lab.reachable(lab.ports[1], port4(1))
            until(lambda: holds(file, 4), "a request and its reply")
            finished(process)
        assert {name for name, *_ in dissected(file)} == {"lan/ipvl1", "lan/ipvl2"}


def test_a_reader_that_stands_still_holds_nobody_up(lab: Lab, lan: Daemon) -> None:
    """More passes meanwhile than the memory holds; it is told how much it has missed."""
    lab.reachable(lab.ports[0], port4(2))
    with capturing(lan, "lan", "-w", "/dev/null") as process:
        process.send_signal(signal.SIGSTOP)
        before = lan.stats()[0]["ports"]["ipvl2"]["tx_bytes"]
        while lan.stats()[0]["ports"]["ipvl2"]["tx_bytes"] - before < 40 << 20:
            tcp(lab.ports[0], lab.ports[1], port4(2), 5_000_000)
        process.send_signal(signal.SIGCONT)
        assert lab.ping(lab.ports[0], port4(2), PINGS) == PINGS
        _, complaints = finished(process)
    assert " lost: this reader was too slow" in complaints


def test_a_killed_reader_leaves_nothing(lab: Lab, lan: Daemon) -> None:
    before = lan.fds()
    for _ in range(3):
        with capturing(lan, "lan", "-w", "/dev/null") as process:
            assert lan.fds() > before
            process.kill()
            process.wait()
        until(lambda: lan.fds() <= before, "the daemon has closed what was the reader's")


def test_as_many_as_may_be_and_no_more(lan: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(capturing(lan, "-w", "/dev/null"))
        status, answer = lan.call("POST", "/v1/captures", {"at": "lan"})
        assert status == 409 and answer["error"] == "lan: there are 8 captures already"


def test_the_daemons_end_ends_a_capture(lab: Lab) -> None:
    with Daemon(switch("m0", lab.host, [port("ipvl1", lab.ports[0], [f"{port4(1)}/16"])]), home=lab.home) as daemon:
        daemon.wait()
        with capturing(daemon, "lan", "-w", "/dev/null") as process:
            daemon.stop()
            _, complaints = process.communicate(timeout=LIMIT)
            assert process.returncode == 1 and complaints == "ipvsw: the daemon has ended\n"


def test_wireshark_finds_the_ports_among_its_interfaces(lab: Lab, lan: Daemon, tmp_path: Path) -> None:
    lab.reachable(lab.ports[0], port4(2))
    tool = tmp_path / "extcap" / "ipvsw-extcap"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\ncd {ROOT}\nexec {sys.executable} -m ipvsw.capture.extcap "$@" --socket {lan.socket}\n')
    tool.chmod(0o755)
    folders = subprocess.run(["tshark", "-G", "folders"], capture_output=True, text=True, timeout=LIMIT).stdout
    (folder,) = re.findall(r"^Extcap path:\s+(.*)$", folders, re.MULTILINE)
    beside = ["unshare", "--mount", "sh", "-c", f'mount --bind {tool.parent} {folder} && exec tshark "$@"', "tshark"]
    environment = os.environ | {"HOME": str(tmp_path)}
    listed = subprocess.run([*beside, "-D"], env=environment, capture_output=True, text=True, timeout=LIMIT).stdout
    for name in ("lan (ipvsw switch lan)", "lan/ipvl1 (ipvsw port lan/ipvl1)", "lan/master (ipvsw lan, wire m0)"):
        assert f"ipvsw:{name}" in listed
    more = ["-i", "ipvsw:lan/ipvl1", "-c", "4", "-T", "fields", "-e", "frame.comment"]
    reader = subprocess.Popen(
        [*beside, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def pinged() -> bool:
        lab.ping(lab.ports[0], port4(2))
        return reader.poll() is not None

    until(pinged, "tshark has four frames")
    said, complaints = reader.communicate(timeout=LIMIT)
    assert "delivered: to_port lan/ipvl2: " in said and reader.returncode == 0, complaints


def test_real_frames_are_traced(lab: Lab, lan: Daemon) -> None:
    lab.reachable(lab.ports[0], port4(2))
    command = [*tool_at(lan.socket), "trace", "ipvl1", "--live", "-n", "2"]
    process = subprocess.Popen([*command, "--filter", "icmp"], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def pinged() -> bool:
        lab.ping(lab.ports[0], port4(2))
        return process.poll() is not None

    until(pinged, "two frames are traced")
    told, again, end = process.communicate()[0].split("\n\n")
    assert process.returncode == 0 and end == ""
    for one in (told, again):
        seen, *stages = one.splitlines()
        assert f"lan/ipvl1 in   98 bytes, IPv4 {port4(1)} -> {port4(2)}: delivered: to_port lan/ipvl2: " in seen
        assert stages[0] == "frame from lan/ipvl1" and stages[-1] == "  lan/ipvl2: the frame as it was sent"
        assert any(line.startswith("  decide   l2 bridge: ") for line in stages)


def test_a_real_gso_frame_is_traced_as_one(lab: Lab, lan: Daemon) -> None:
    lab.reachable(lab.ports[0], port4(2))
    command = [*tool_at(lan.socket), "trace", "ipvl1", "--live", "-n", "1"]
    more = ["--filter", "tcp and greater 2000", "--json"]
    process = subprocess.Popen([*command, *more], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def sent() -> bool:
        tcp(lab.ports[0], lab.ports[1], port4(2))
        return process.poll() is not None

    until(sent, "a GSO frame is traced")
    assert json.loads(process.communicate()[0])["outcome"] == "to_port"
