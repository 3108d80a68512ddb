"""`top`: what goes on now, again and again."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ipvsw.cli.command import Asked, Command, Failed, Option, Usage, read_nothing
from ipvsw.cli.watch import line
from ipvsw.rates import SORTS, Difference, Load, difference, short

if TYPE_CHECKING:
    from rich.console import Console, ConsoleRenderable

    from ipvsw.cli.diagnose.flows import FlowWatch, Seen
    from ipvsw.client import Client, Record

INTERVAL = 2.0  # seconds
EVENTS = 4  # the last of them are shown
REASONS = 3  # of drops
LOADS = 2  # switches whose workers are shown
FLOWS = 5
QUIT, BY_FLOW = "q", "f"
ORDERS = {name: key for key, (name, _) in SORTS.items()}
COLUMNS = ("RX/s", "RX bit/s", "TX/s", "TX bit/s", "DROPS/s")


def _read(words: list[str], asked: Asked) -> None:
    read_nothing(words, asked)
    _interval(asked)
    if (order := asked.options.get("sort", "rx")) not in ORDERS:
        raise Usage(f"--sort: {order} is none of {', '.join(ORDERS)}", asked.command)


def _interval(asked: Asked) -> float:
    text = asked.options.get("interval", str(INTERVAL))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise Usage(f"--interval: {text} is not between 0.1 and 3600 seconds", asked.command)
    return seconds


def _top(asked: Asked) -> None:
    from rich.console import Console

    console = Console()
    key, interval = ORDERS[asked.options.get("sort", "rx")], _interval(asked)
    if "once" in asked.options or not (console.is_terminal and sys.stdin.isatty()):
        _once(console, asked.client, key, interval, flows="flows" in asked.options)
    else:
        _live(console, asked.client, key, interval, flows="flows" in asked.options)


def _once(console: Console, client: Client, key: str, interval: float, *, flows: bool) -> None:
    """One table of all interfaces, without events."""
    before, began = client.stats(), time.monotonic()
    watch = _watch_flows(client, before) if flows else None
    time.sleep(interval)
    seen = watch.read(FLOWS) if watch else None
    found = difference(before, client.stats(), time.monotonic() - began)
    if watch:
        watch.stop()
    console.print(screen(found, key, len(found.rows), (), seen), end="")


def _watch_flows(client: Client, stats: list[Record]) -> FlowWatch:
    from ipvsw.cli.diagnose.flows import FlowWatch

    return FlowWatch(client, [switch["name"] for switch in stats])


def _live(console: Console, client: Client, key: str, interval: float, *, flows: bool) -> None:
    """Until it is ended by a key, or the daemon ends."""
    from rich.live import Live

    events: deque[Record] = deque(maxlen=EVENTS)
    threading.Thread(target=_follow, args=(client, events), daemon=True).start()
    before, began = client.stats(), time.monotonic()
    found = difference(before, before, 1.0)
    watch = _watch_flows(client, before) if flows else None
    seen = watch.read(FLOWS) if watch else None
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            rows = _room(console.size.height, found, seen)
            live.update(screen(found, key, rows, tuple(events), seen), refresh=True)
            pressed = _pressed(max(began + interval - time.monotonic(), 0))
            if pressed == QUIT:
                break
            key = pressed if pressed in SORTS else key
            if pressed == BY_FLOW and watch:
                watch.stop()
                watch = seen = None
            elif pressed == BY_FLOW:
                watch = _watch_flows(client, before)
                seen = watch.read(FLOWS)
            if (now := time.monotonic()) >= began + interval:
                after = client.stats()
                found = difference(before, after, now - began)
                before, began = after, now
                seen = watch.read(FLOWS) if watch else None
    if watch:
        watch.stop()


def _room(height: int, found: Difference, seen: Seen | None) -> int:
    """For rows, on a terminal of so many lines."""
    below = EVENTS + REASONS + min(len(found.loads), LOADS) + (FLOWS + 1 if seen else 0)
    return max(height - below - 5, 1)


def _follow(client: Client, events: deque[Record]) -> None:
    """What happens, until the daemon ends: then `stats` says so."""
    from ipvsw.client import ApiError, Unreachable

    with contextlib.suppress(ApiError, Unreachable):
        for event in client.events():
            events.append(event)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Each key at once, and not shown."""
    import termios
    import tty

    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def _pressed(seconds: float) -> str:
    """A key, "" if none is pressed by then. Errors: Failed if the terminal is gone."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return ""
    data = os.read(sys.stdin.fileno(), 1)
    if not data:
        raise Failed("the terminal is gone")
    return data.decode(errors="replace")


def screen(
    found: Difference, key: str, rows: int, events: tuple[Record, ...], seen: Seen | None = None
) -> ConsoleRenderable:
    """As many rows as there is room for, the first in the order of `key`; the busiest flows, if they are looked at."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    name, order = SORTS[key]
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("PORT", no_wrap=True, ratio=1)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("REASON", no_wrap=True, ratio=1)
    ordered = sorted(found.rows, key=order)
    for row in ordered[:rows]:
        rates = (short(row.rx_frames), short(row.rx_bits), short(row.tx_frames), short(row.tx_bits), short(row.drops))
        table.add_row(Text(row.name), *rates, row.reason, style="red" if row.drops else "")
    hidden = len(ordered) - rows
    keys = "  ".join(f"{key} by {what}" for key, (what, _) in SORTS.items())
    more = f", {hidden} more" if hidden > 0 else ""
    head = f"{len(ordered)} interfaces by {name}{more}    {keys}  {BY_FLOW} flows  {QUIT} quit"
    drops = [f"{short(count):>6}/s  {reason}" for reason, count in found.drops[:REASONS]]
    parts: list[Any] = [_one_line(head, "bold"), table, Text("")]
    parts += [_one_line(_load(load), "") for load in found.loads[:LOADS]]
    parts += [_one_line(text, "bold" if not n else "") for n, text in enumerate(_flows(seen))]
    parts += [_one_line(text, "red") for text in drops] + [_one_line(line(event), "dim") for event in events]
    return Group(*parts)


def _load(load: Load) -> str:
    workers = " ".join(f"{100 * cpu:.0f}%" for cpu in load.cpu)
    queues = f"{load.flood} to copy, {load.router} to route, {load.snooper} to look at"
    return f"{load.name}: CPU of workers {workers}   frames that wait: {queues}"


def _flows(seen: Seen | None) -> list[str]:
    if seen is None:
        return []
    missed = f", of {100 * seen.share:.0f}% of the frames" if seen.share < 1 else ""
    lines = [f"  bit/s  frames/s  FLOW{missed}{f': {seen.problem}' if seen.problem else ''}"]
    return lines + [f"{short(one.bits):>7}  {short(one.frames):>8}  {one.at}  {one.text}" for one in seen.flows]


def _one_line(text: str, style: str) -> Any:
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


COMMANDS = (
    Command(
        name="top",
        summary="what goes on now: rates, drops, workers, flows, events",
        about="""\
Show the interfaces with what they received and sent in each second, as the switch sees it, and what
was dropped; the reasons of most drops; how busy the data plane's workers are, with the frames that
wait in their queues; and the last events. Needs 80 columns and 24 lines.

Keys:  n, r, t, d   order by name, by what was received or sent, by drops
       f            the busiest flows, from where their frames come; again: without them
       q            quit

For flows frames are captured (see `ipvsw capture --help`) as long as they are shown: the daemon
forwards for veth ports meanwhile. Frames that come too fast to be read are not counted.

Without a terminal, or with --once, it prints one table of everything and ends.
""",
        read=_read,
        run=_top,
        options=(
            Option("--interval", f"seconds between two readings [{INTERVAL:g}]", operand="SECONDS"),
            Option("--sort", f"{', '.join(ORDERS)} [rx]", operand="ORDER"),
            Option("--flows", "with the busiest flows"),
            Option("--once", "one table, and the end"),
        ),
    ),
)
