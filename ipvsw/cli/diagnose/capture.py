"""`capture`: frames as the switch reads and writes them, with what became of each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ipvsw.cli.command import Asked, Command, Failed, Option, Usage, first, read_name
from ipvsw.cli.complete import Names

if TYPE_CHECKING:
    from ipvsw.capture.filters import Filter
    from ipvsw.capture.session import Session, Stop
    from ipvsw.client import Record


def _read(words: list[str], asked: Asked) -> None:
    read_name(words, asked)
    read_count(asked)


def read_count(asked: Asked) -> None:
    """Errors: Usage."""
    if "count" in asked.options and not (asked.options["count"].isdecimal() and int(asked.options["count"])):
        raise Usage(f"--count: {asked.options['count']} is no number of frames", asked.command)


def _capture(asked: Asked) -> None:
    from ipvsw.capture.session import Ended, Stop, session

    stop = Stop()
    matches, count = filter_of(asked), int(asked.options.get("count", 0))
    path = asked.options.get("write", "")
    if path == "-" and sys.stdout.isatty():
        raise Failed("a capture is no text for a terminal: say `-w FILE`, or `-w - | tshark -r -`")
    with session(asked.client, asked.name or "") as frames:
        names = [one.name for one in frames.interfaces.values() if one.captured]
        print(f"ipvsw: capturing at {', '.join(names[:3])}{', ...' if names[3:] else ''}", file=sys.stderr, flush=True)
        try:
            done = _write(frames, path, matches, stop, count) if path else _print(frames, matches, stop, count)
        except Ended:
            raise Failed("the daemon has ended") from None
        lost = frames.lost
    if path or lost:
        said = f"{done} frames captured, {lost} lost" + (": this reader was too slow" if lost else "")
        print(f"ipvsw: {said}", file=sys.stderr)


def live(asked: Asked, text: Callable[[Record], str]) -> None:
    """`ipvsw trace --live`: `text` tells a frame's stages."""
    from ipvsw.capture.ring import RX
    from ipvsw.capture.session import Ended, Stop, session
    from ipvsw.capture.words import line

    matches, count, done = filter_of(asked), int(asked.options.get("count", 0)), 0
    client, stop = asked.client, Stop()
    with session(client, asked.required_name) as frames:
        try:
            for one in frames.frames(sys.stdout.flush, stop):
                if one.direction != RX or (matches is not None and not matches.matches(one.frame)):
                    continue
                traced = client.trace(at=asked.required_name, frame=one.frame.hex(), header=one.header.hex())
                seen = line(one, frames)
                print(json.dumps({"captured": seen, **traced}) if asked.json else f"{seen}\n{text(traced)}\n")
                done += 1
                if done == count:
                    break
            sys.stdout.flush()
        except Ended:
            raise Failed("the daemon has ended") from None


def filter_of(asked: Asked) -> Filter | None:
    """Errors: Failed."""
    from ipvsw.capture.filters import BadFilter, Filter

    if "filter" not in asked.options:
        return None
    try:
        return Filter(asked.options["filter"])
    except BadFilter as error:
        raise Failed(f"--filter: {error}") from None


def _write(frames: Session, path: str, matches: Filter | None, stop: Stop, count: int) -> int:
    from ipvsw.capture.writer import record

    try:
        fd = os.dup(sys.stdout.fileno()) if path == "-" else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    try:
        return record(frames, fd, matches, stop, count)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    finally:
        os.close(fd)


def _print(frames: Session, matches: Filter | None, stop: Stop, count: int) -> int:
    from ipvsw.capture.words import line

    done = 0
    for one in frames.frames(sys.stdout.flush, stop):
        if matches is None or matches.matches(one.frame):
            print(line(one, frames))
            done += 1
            if done == count:
                break
    sys.stdout.flush()
    return done


FILTER = Option("--filter", "only frames that match, as tcpdump has it: pcap-filter(7)", operand="EXPRESSION")
COUNT = Option("--count", "end after so many frames", operand="NUMBER", short="-n")
COMMANDS = (
    Command(
        name="capture",
        summary="frames as they pass, with what becomes of each",
        operands="[SWITCH|PORT|MASTER|master|host]",
        about="""\
Print the frames that the switch reads from and writes to a port, its master (`master`, or the
master's name), the host's stack (`host`), or all interfaces of a switch, until Ctrl-C. Each is told
with what became of it, also if it was dropped. Without a name: of the only switch.

With -w they are written as pcapng, for Wireshark and tshark: to a file, or with `-w -` to the next
program. One interface block stands for each interface. A frame has its direction (as the switch
sees it: in is what it has read), a comment that says what became of it and why, and the same as a
verdict.

A reader that is too slow loses frames, and is told how many; the traffic waits for no reader.
While a veth port is captured the daemon forwards its frames, see PATH of `ipvsw link show`.
""",
        read=_read,
        run=_capture,
        complete=first(Names.both),
        options=(
            Option("--write", "as pcapng; - is the standard output", operand="FILE", short="-w"),
            FILTER,
            COUNT,
        ),
    ),
)
