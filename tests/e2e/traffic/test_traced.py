"""The situations of docs/howto/trace.md: each command says there what it says here."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.sniff import raw, sniffing
from tests.support.topology import MASTER_MAC, WIRE_MAC, Lab, port4
from tests.support.wire.frames import udp4

PAGE = Path(__file__).resolve().parents[3] / "docs/howto/trace.md"
SINCE = re.compile(r"since [-0-9]+ [:0-9]+")


def documented(lab: Lab) -> dict[str, Any]:
    """The page's configuration, with the lab's namespaces."""
    text = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    (table,) = tomllib.loads(text)["switch"]
    for netns, one in zip(lab.ports, table["port"], strict=True):
        one["netns"], one["ifname"] = netns, one["name"]
    found: dict[str, Any] = table | {"netns": lab.host}
    return found


def blocks() -> list[str]:
    return re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_every_situation_is_told_as_the_page_has_it() -> None:
    with Lab(4) as lab, Daemon(documented(lab), home=lab.home) as daemon:
        daemon.wait()
        for block in blocks():
            said = ""
            for line in (line for line in block.splitlines() if line.startswith("$ ")):
                told = daemon.cli(*shlex.split(line)[2:], check=False)
                said += f"{line}\n{told}"
            assert SINCE.sub("since", said) == SINCE.sub("since", block), block


def test_twenty_situations_are_told() -> None:
    assert sum(line.startswith("$ ipvsw trace") for block in blocks() for line in block.splitlines()) >= 20


def test_a_trace_is_what_happens_then(lab: Lab, lan: Daemon) -> None:
    frame = udp4(port4(1), "10.1.0.254", b"traced", to=WIRE_MAC)
    before = lan.stats()[0]["ports"]["ipvl1"]["outcomes"]
    told = json.loads(lan.cli("trace", "ipvl1", "--frame", frame.hex(), "--json"))
    assert (told["outcome"], told["delivered"], told["switch"], told["at"]) == ("to_master", True, "lan", "ipvl1")
    assert told["receivers"] == [{"to": "wire", "frame": frame.hex()}]
    assert lan.stats()[0]["ports"]["ipvl1"]["outcomes"]["to_master"] == before["to_master"]
    with raw(lab.ports[0], "ipvl1") as device, sniffing(lab.wire, "w0") as wire:
        device.send(frame)
        until(lambda: any(seen == frame for _, seen in wire.frames), "the frame is on the wire")


def test_what_the_kernel_forwards_is_told_by_the_kernel(lab: Lab) -> None:
    """Of two veths: to the wire, to a sibling, from the wire, and what is left to the daemon. Then it happens."""
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"], device="veth") for k, netns in enumerate(lab.ports, 1)]
    with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
        daemon.wait()
        for at, to, frame in (
            ("ipvl1", "wire", unanswered(port4(1), "10.1.0.254", to=WIRE_MAC)),
            ("ipvl1", "lan/ipvl2", unanswered(port4(1), port4(2))),
            ("m0", "lan/ipvl2", unanswered("10.1.0.254", port4(2), by=WIRE_MAC)),
        ):
            before = counted(daemon)
            told = json.loads(daemon.cli("trace", at, "--frame", frame.hex(), "--json"))
            assert [step["stage"] for step in told["steps"]] == ["parse", "kernel"]
            assert told["outcome"] == ("to_master" if to == "wire" else "to_port") and told["delivered"]
            assert told["receivers"] == [{"to": to, "frame": frame.hex()}]
            assert counted(daemon) == before, "a trace counts nothing"
            send(*((lab.wire, "w0") if at == "m0" else (lab.ports[0], at)), frame)
            until(partial(has_counted, daemon, sum(before) + 1), f"the kernel has forwarded it: {to}")


def test_why_the_kernel_leaves_a_frame_to_the_daemon_is_told(lab: Lab) -> None:
    with Daemon(switch("m0", lab.host, [port("ipvl1", lab.ports[0], device="veth")]), home=lab.home) as daemon:
        daemon.wait()
        frame, before = unanswered(port4(1), "10.1.0.99"), counted(daemon)
        told = json.loads(daemon.cli("trace", "ipvl1", "--frame", frame.hex(), "--json", check=False))
        assert told["steps"][1]["text"] == "left to the daemon: no port has the destination"
        ended = ends(daemon)[told["outcome"]]
        send(lab.ports[0], "ipvl1", frame)
        until(lambda: ends(daemon)[told["outcome"]] > ended, "the daemon has decided about it")
        assert counted(daemon) == before


def unanswered(source: str, destination: str, *, to: str = MASTER_MAC, by: str = MASTER_MAC) -> bytes:
    """No stack says anything to a datagram whose checksum is wrong."""
    return udp4(source, destination, b"right", to=to, by=by)[:-5] + b"wrong"


def send(netns: str, device: str, frame: bytes) -> None:
    with raw(netns, device) as sender:
        sender.send(frame)


def ends(daemon: Daemon) -> dict[str, int]:
    found: dict[str, int] = daemon.stats()[0]["ports"]["ipvl1"]["outcomes"]
    return found


def has_counted(daemon: Daemon, frames: int) -> bool:
    return sum(counted(daemon)) == frames


def counted(daemon: Daemon) -> list[int]:
    """What the kernel has forwarded: from each port and from the master."""
    (stats,) = daemon.stats()
    return [stats["master"]["kernel_frames"], *(one["kernel_frames"] for one in stats["ports"].values())]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["ipvl9", "--dst", "10.1.0.1"], 'there is no switch, port or master "ipvl9"'),
        (["ipvl1"], "destination: an address is missing"),
        (["ipvl1", "--dst", "somewhere"], "destination: 'somewhere' is no IP address"),
        (["master", "--dst", port4(1)], "source: an IPv4 address is missing, and the sender has none of its own"),
        (["ipvl1", "--ns", "--dst", "10.1.0.1"], "destination: ns is of IPv6, and 10.1.0.1 is not"),
        (["ipvl1", "--frame", "xyz"], "frame: not bytes in hexadecimal"),
        (["ipvl1", "--frame", "00", "--dst", "10.1.0.1"], "frame: it is whole, and nothing else can be said of it"),
        (["ipvl1", "--dst", "10.1.0.1", "--src-mac", "02:00"], "source_mac: 2 bytes are too few"),
        (["ipvl1", "--dst", "10.1.0.1", "--proto", "udp", "--dport", "70000"], "destination_port: 70000 is not"),
    ],
)
def test_what_can_not_be_traced_is_refused_in_one_line(lan: Daemon, words: list[str], error: str) -> None:
    body = dict(at=words[0], **api_words(words[1:]))
    status, answer = lan.call("POST", "/v1/trace", body)
    assert status in (404, 409) and error in answer["error"]


def api_words(options: list[str]) -> dict[str, Any]:
    from ipvsw.cli.commands import understand
    from ipvsw.cli.diagnose.trace import words_of

    return words_of(understand(["trace", "x", *options]).options)
