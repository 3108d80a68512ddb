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
from ipvsw.rates import SORTS, Difference, difference, short

if TYPE_CHECKING:
    from rich.console import Console, ConsoleRenderable

    from ipvsw.client import Client, Record

INTERVAL = 2.0  # seconds
EVENTS = 4  # the last of them are shown
REASONS = 3  # of drops
QUIT = "q"
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
        _once(console, asked.client, key, interval)
    else:
        _live(console, asked.client, key, interval)


def _once(console: Console, client: Client, key: str, interval: float) -> None:
    """One table of all interfaces, without events."""
    before, began = client.stats(), time.monotonic()
    time.sleep(interval)
    found = difference(before, client.stats(), time.monotonic() - began)
    console.print(screen(found, key, len(found.rows), ()), end="")


def _live(console: Console, client: Client, key: str, interval: float) -> None:
    """Until it is ended by a key, or the daemon ends."""
    from rich.live import Live

    events: deque[Record] = deque(maxlen=EVENTS)
    threading.Thread(target=_follow, args=(client, events), daemon=True).start()
    before, began = client.stats(), time.monotonic()
    found = difference(before, before, 1.0)
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            rows = console.size.height - EVENTS - REASONS - 5
            live.update(screen(found, key, max(rows, 1), tuple(events)), refresh=True)
            pressed = _pressed(max(began + interval - time.monotonic(), 0))
            if pressed == QUIT:
                return
            key = pressed if pressed in SORTS else key
            if (now := time.monotonic()) >= began + interval:
                after = client.stats()
                found = difference(before, after, now - began)
                before, began = after, now


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


def screen(found: Difference, key: str, rows: int, events: tuple[Record, ...]) -> ConsoleRenderable:
    """As many rows as there is room for, the first in the order of `key`."""
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
    lines = [f"{len(ordered)} interfaces by {name}{f', {hidden} more' if hidden > 0 else ''}    {keys}  {QUIT} quit"]
    drops = [f"{short(count):>6}/s  {reason}" for reason, count in found.drops[:REASONS]]
    parts: list[Any] = [_one_line(lines[0], "bold"), table, Text("")]
    parts += [_one_line(text, "red") for text in drops] + [_one_line(line(event), "dim") for event in events]
    return Group(*parts)


def _one_line(text: str, style: str) -> Any:
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


COMMANDS = (
    Command(
        name="top",
        summary="what goes on now: rates, drops, events",
        about="""\
Show the interfaces with what they received and sent in each second, as the switch sees it, and what
was dropped; the reasons of most drops; and the last events. Needs 80 columns and 24 lines.

Keys:  n, r, t, d   order by name, by what was received or sent, by drops
       q            quit

Without a terminal, or with --once, it prints one table of everything and ends.
""",
        read=_read,
        run=_top,
        options=(
            Option("--interval", f"seconds between two readings [{INTERVAL:g}]", operand="SECONDS"),
            Option("--sort", f"{', '.join(ORDERS)} [rx]", operand="ORDER"),
            Option("--once", "one table, and the end"),
        ),
    ),
)
