"""`trace`: what would become of a frame, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ipvsw.cli.command import Asked, Command, Option, Usage, first, read_nothing
from ipvsw.cli.complete import Names
from ipvsw.cli.diagnose.capture import COUNT, FILTER, live, read_count
from ipvsw.cli.diagnose.pcap import frames

if TYPE_CHECKING:
    from ipvsw.client import Record

KINDS = ("arp", "ns", "dhcp")
WORDS = {"src": "source", "dst": "destination", "src-mac": "source_mac", "dst-mac": "destination_mac"}
NUMBERS = {"sport": "source_port", "dport": "destination_port"}


def _read(words: list[str], asked: Asked) -> None:
    if not words:
        raise Usage("say where the frame comes from: a port, master or host", asked.command)
    asked.name = words[0]
    read_nothing(words[1:], asked)
    ways = [name for name in ("live", "frame", "pcap", *KINDS, "proto") if name in asked.options]
    if len(ways) > 1:
        raise Usage(f"--{ways[0]} and --{ways[1]} are two frames", asked.command)
    for name in ("filter", "count"):
        if name in asked.options and "live" not in asked.options:
            raise Usage(f"--{name} is for --live", asked.command)
    read_count(asked)
    for name in NUMBERS:
        if name in asked.options and not asked.options[name].isdecimal():
            raise Usage(f"--{name}: {asked.options[name]} is no number", asked.command)


def _trace(asked: Asked) -> Record | list[Record] | None:
    if "live" in asked.options:
        live(asked, text)
        return None
    if "pcap" in asked.options:
        return [asked.client.trace(at=asked.required_name, frame=raw.hex()) for raw in frames(asked.options["pcap"])]
    return asked.client.trace(at=asked.required_name, **words_of(asked.options))


def words_of(options: dict[str, str]) -> dict[str, Any]:
    """As the API has them."""
    words: dict[str, Any] = {WORDS[name]: value for name, value in options.items() if name in WORDS}
    words |= {NUMBERS[name]: int(value) for name, value in options.items() if name in NUMBERS}
    if "frame" in options:
        words["frame"] = options["frame"]
    kind = next((kind for kind in KINDS if kind in options), options.get("proto"))
    return words if kind is None else words | {"kind": kind}


def _write(result: Record | list[Record], asked: Asked) -> str:
    return "\n\n".join(map(text, result)) if isinstance(result, list) else text(result)


def text(one: Record) -> str:
    """One frame's way, a line for each stage."""
    width = max(len(step["stage"]) for step in one["steps"])
    lines = [f"frame from {one['switch']}/{one['at']}"]
    lines += [f"  {step['stage']:<{width}}  {step['text']}" for step in one["steps"]]
    lines.append(f"{'delivered' if one['delivered'] else 'dropped'}: {one['outcome']}: {one['reason']}")
    return "\n".join([*lines, *_received(one)])


def _received(one: Record) -> Iterator[str]:
    """Those who get the same bytes together."""
    names: dict[str, list[str]] = {}
    for receiver in one["receivers"]:
        names.setdefault(receiver["frame"], []).append(receiver["to"])
    for frame, every in names.items():
        what = "the frame as it was sent" if frame == one["frame"] else frame
        yield f"  {', '.join(every)}: {what}"


def _code(result: Record | list[Record]) -> int:
    every = result if isinstance(result, list) else [result]
    return 0 if all(one["delivered"] for one in every) else 1


COMMANDS = (
    Command(
        name="trace",
        summary="what would become of a frame, and why",
        operands="PORT|MASTER|master|host",
        about="""\
Tell what the switch would do with a frame from a port, from the wire (`master`, or the master's
name) or from the host's own interface (`host`), stage by stage: the data plane's own rules answer.
Nothing is sent, and no counter changes. With several switches say SWITCH/master or SWITCH/host.

The frame is an ICMP echo request, or what --proto, --arp, --ns or --dhcp says, made of the
addresses that are named and otherwise as the port would send it; or the bytes of --frame; or each
frame of a capture file.

With --live it is each frame that comes from there from now on, until Ctrl-C: first what became of
it, then the stages, as the rules are just after.

Exits with 0 if somebody gets the frame, with 1 if it is dropped (of a file: if any is).
""",
        read=_read,
        run=_trace,
        write=_write,
        code=_code,
        complete=first(Names.ports),
        options=(
            Option("--src", "source address; without it an address of the port's", operand="ADDRESS"),
            Option("--dst", "destination address", operand="ADDRESS"),
            Option("--proto", "icmp, tcp or udp", operand="PROTO"),
            Option("--sport", "source port", operand="NUMBER"),
            Option("--dport", "destination port", operand="NUMBER"),
            Option("--arp", "an ARP request for --dst"),
            Option("--ns", "a neighbour solicitation for --dst"),
            Option("--dhcp", "a DHCP client's first message; for IPv6 with --src"),
            Option("--src-mac", "source MAC address", operand="MAC"),
            Option("--dst-mac", "destination MAC address", operand="MAC"),
            Option("--frame", "a whole frame in hexadecimal", operand="HEX"),
            Option("--live", "the next frames that come from there"),
            FILTER,
            COUNT,
            Option("--pcap", "every frame of a capture file, pcap or pcapng", operand="FILE"),
        ),
    ),
)
