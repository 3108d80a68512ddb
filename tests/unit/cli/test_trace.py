"""`ipvsw trace`: words to the API and back, and frames out of capture files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvsw import cli, outcomes
from ipvsw._fast import OUTCOMES
from ipvsw.cli.command import Failed
from ipvsw.cli.diagnose.pcap import frames
from ipvsw.status import TraceAsked
from tests.unit.daemon.fake_manager import TRACED, Daemon

FRAMES = [bytes(range(60)), bytes(61), b"\xff" * 14]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path / "api.sock")
    yield made
    made.close()


def run(daemon: Daemon, *line: str) -> int:
    return cli.main([f"--socket={daemon.path}", "trace", *line])


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("ipvl0 --dst 10.0.0.3", TraceAsked(at="ipvl0", destination="10.0.0.3")),
        (
            "ipvl0 --src fd00::1 --dst fd00::2 --proto tcp --sport 5 --dport 80",
            TraceAsked(
                at="ipvl0", source="fd00::1", destination="fd00::2", kind="tcp", source_port=5, destination_port=80
            ),
        ),
        ("host --arp --dst 10.0.0.3", TraceAsked(at="host", destination="10.0.0.3", kind="arp")),
        (
            "lan/ipvl0 --dhcp --src-mac 02:00:00:00:00:05",
            TraceAsked(at="lan/ipvl0", kind="dhcp", source_mac="02:00:00:00:00:05"),
        ),
        ("eth0 --frame 00ff", TraceAsked(at="eth0", frame="00ff")),
    ],
)
def test_words_are_the_apis(daemon: Daemon, line: str, asked: TraceAsked, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(daemon, *line.split()) == 0
    assert daemon.manager.calls == [("trace", asked)]
    assert capsys.readouterr().out.splitlines() == [
        f"frame from lan/{asked.at}",
        "  parse   60 bytes",
        "  decide  l2 bridge",
        "delivered: to_port: it is for port ipvl1",
        f"  lan/ipvl1, wire: {'00' * 14}",
    ]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", "trace: say where the frame comes from: a port, master or host"),
        ("a b", "trace: b: one word too many"),
        ("a --arp --frame 00", "trace: --frame and --arp are two frames"),
        ("a --dport http", "trace: --dport: http is no number"),
    ],
)
def test_usage(daemon: Daemon, line: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(daemon, *line.split()) == 2
    assert capsys.readouterr().err == f"ipvsw: {error} (see ipvsw trace --help)\n"


def test_every_frame_of_a_file_is_traced(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "seen.pcap").write_bytes(pcap("<"))
    assert run(daemon, "ipvl0", "--pcap", str(tmp_path / "seen.pcap"), "--json") == 0
    assert [one["frame"] for one in json.loads(capsys.readouterr().out)] == [frame.hex() for frame in FRAMES]


def test_a_frame_that_nobody_gets_is_exit_code_1(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.daemon.fake_manager.TRACED", lost())
    assert run(daemon, "ipvl0", "--dst", "10.0.0.3") == 1


def lost() -> object:
    import msgspec

    return msgspec.structs.replace(TRACED, delivered=False, outcome="drop_private", receivers=())


def test_a_body_that_is_none_is_refused(daemon: Daemon) -> None:
    from ipvsw.client import ApiError, Client

    with pytest.raises(ApiError, match="unknown field"):
        Client(str(daemon.path)).trace(at="ipvl0", colour="red")


# ---------------------------------------------------------------------------- capture files


def pcap(order: str) -> bytes:
    """Little or big endian."""
    head = struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return head + b"".join(struct.pack(f"{order}IIII", 1, 2, len(one), len(one)) + one for one in FRAMES)


def pcapng(order: str, link: int = 1, kept: int | None = None) -> bytes:
    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        size = struct.pack(f"{order}I", 12 + len(body))
        return struct.pack(f"{order}I", kind) + size + body + size

    blocks = [block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))]
    blocks.append(block(1, struct.pack(f"{order}HHI", link, 0, 0)))
    blocks.append(block(5, bytes(12)))  # statistics, which have no frame
    for one in FRAMES[:2]:
        data = one[:kept]
        blocks.append(block(6, struct.pack(f"{order}IIIII", 0, 0, 0, len(data), len(one)) + data))
    blocks.append(block(3, struct.pack(f"{order}I", len(FRAMES[2])) + FRAMES[2]))
    return b"".join(blocks)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("form", [pcap, pcapng])
def test_both_formats_in_both_byte_orders(form: object, order: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(form(order))  # type: ignore[operator]
    assert list(frames(str(tmp_path / "file"))) == FRAMES


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "neither pcap nor pcapng"),
        (b"GIF89a", "neither pcap nor pcapng"),
        (pcap("<")[:-1], "it ends in the middle"),
        (pcap("<")[:30], "it ends in the middle"),
        (pcapng("<", link=113), "link type 113 is not Ethernet"),
        (pcapng("<", kept=20), "a frame was cut to 20 of 60 bytes; capture it whole (tcpdump -s 0)"),
        (pcapng("<")[:-10], "it ends in the middle"),
    ],
)
def test_what_is_no_capture_file_is_refused(content: bytes, error: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Failed) as refused:
        list(frames(str(tmp_path / "file")))
    assert str(refused.value) == f"{tmp_path / 'file'}: {error}"


def test_every_outcome_has_a_reason() -> None:
    assert all(outcome.frame and outcome.reason for outcome in outcomes.OUTCOMES.values())
    assert {name for name in outcomes.OUTCOMES if not outcomes.is_drop(name)} == {
        name for name in OUTCOMES if name.startswith("to_") or name in ("left_to_host", "answered")
    }
