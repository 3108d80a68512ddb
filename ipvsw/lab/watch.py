"""A table of the master and the ports that moves: addresses, rates, drops."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from typing import NamedTuple

import msgspec

from ipvsw.client import ApiError, Client, Unreachable
from ipvsw.lab.stage import LabError
from ipvsw.status import SwitchStats, SwitchStatus, Traffic

HEAD = ("PORT", "NETNS", "STATE", "ADDRESSES", "RX/s", "RX b/s", "TX/s", "TX b/s", "DROPS")  # fits 80 columns


class Sample(NamedTuple):
    """What the daemon reported at one time."""

    at: float  # seconds, monotonic
    switches: list[SwitchStatus]
    traffic: dict[str, Traffic]  # by `switch` for its master, by `switch/port`


async def watch(client: Client, end: float | None) -> None:
    """Redrawn every second on a terminal, else a block every three seconds; at least one, until `end` (monotonic)."""
    terminal = sys.stdout.isatty()
    interval = 1.0 if terminal else 3.0
    before = sample(client)
    height = 0
    while True:
        left = interval if end is None else min(interval, end - time.monotonic())
        await asyncio.sleep(max(left, 0.2))
        now = sample(client)
        lines = table(before, now)
        if terminal:
            width = shutil.get_terminal_size().columns
            rewind = f"\x1b[{height}A" if height else ""
            print(rewind + "\n".join(f"{line[: width - 1]}\x1b[K" for line in lines), flush=True)
        else:
            print("\n".join([*lines, ""]), flush=True)
        height = len(lines)
        before = now
        if end is not None and time.monotonic() >= end:
            return


def sample(client: Client) -> Sample:
    """Errors: LabError if the daemon does not answer."""
    try:
        switches = msgspec.convert(client.switches(), list[SwitchStatus])
        stats = msgspec.convert(client.stats(), list[SwitchStats])
    except (Unreachable, ApiError) as error:
        raise LabError(f"ipvswd no longer answers: {error}") from error
    traffic = {switch.name: switch.master for switch in stats}
    for switch in stats:
        traffic.update({f"{switch.name}/{name}": port for name, port in switch.ports.items()})
    return Sample(time.monotonic(), switches, traffic)


def table(before: Sample, now: Sample) -> list[str]:
    """Lines of text. rx is what the switch read from a device, as everywhere in ipvsw."""
    rows = [HEAD]
    for switch in now.switches:
        who = ("master", switch.netns or "-", str(switch.state), switch.mac)
        rows.append(who + rates(before, now, switch.name))
        for port in switch.ports:
            # Link-local addresses are there too, but would make the line too long.
            addresses = [a.address for a in port.addresses if not a.address.startswith("fe80:")]
            who = (port.name, port.netns, str(port.state), " ".join(addresses))
            rows.append(who + rates(before, now, f"{switch.name}/{port.name}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def rates(before: Sample, now: Sample, interface: str) -> tuple[str, str, str, str, str]:
    """The numeric cells of one line: per second since `before`, and drops since the interface was opened."""
    seconds = now.at - before.at
    a, b = before.traffic.get(interface, Traffic()), now.traffic.get(interface, Traffic())
    dropped = sum(count for outcome, count in b.outcomes.items() if outcome.startswith("drop_"))
    return (
        metric((b.rx_frames - a.rx_frames) / seconds),
        metric((b.rx_bytes - a.rx_bytes) * 8 / seconds),
        metric((b.tx_frames - a.tx_frames) / seconds),
        metric((b.tx_bytes - a.tx_bytes) * 8 / seconds),
        f"{dropped + b.tx_errors}",
    )


def metric(value: float) -> str:
    """Three digits and a power of a thousand: 83.4k."""
    for unit in ("", "k", "M"):
        if value < 999.5:
            return f"{value:.0f}{unit}" if value >= 99.5 or not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}G"
