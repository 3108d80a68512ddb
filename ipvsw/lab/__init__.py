"""The embedded lab that `make run` shows: the switch at work between namespaces that are made for it.

Reads like a script: build the picture, start the daemon, ping, watch. Whatever is made pushes its own
undoing, so the end is the same after Ctrl-C, SIGTERM, the end of the time or a failure in the middle.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import indent

from ipvsw.client import Client
from ipvsw.lab.processes import daemon, ping, pinging, settled
from ipvsw.lab.stage import CONFIG, LabError, build, leftovers
from ipvsw.lab.watch import watch

# from, to, addresses
PINGS = (
    ("ns0", "ns1", ("10.0.0.3", "fd00::3")),
    ("ns1", "ns0", ("10.0.0.2", "fd00::2")),
    ("ns0", "router", ("10.0.0.1", "fd00::1")),
    ("ns1", "router", ("10.0.0.1", "fd00::1")),
    ("router", "ns0", ("10.0.0.2", "fd00::2")),
    ("router", "ns1", ("10.0.0.3", "fd00::3")),
    ("ns0", "beyond", ("198.51.100.1", "2001:db8::1")),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ipvsw-lab", description="Show the switch at work in a lab of namespaces.")
    parser.add_argument("--seconds", type=float, metavar="N", help="end after N seconds; default: on Ctrl-C")
    options = parser.parse_args(argv)
    try:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        with foreground():
            return asyncio.run(play(options.seconds))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def foreground() -> Iterator[None]:
    """Have the terminal to ourselves: Ctrl-C is our good end, not an error of the make that started us."""
    terminal = next((fd for fd in (0, 1, 2) if os.isatty(fd)), None)
    group = os.getpgrp()
    if terminal is None or group == os.getpid() or os.tcgetpgrp(terminal) != group:
        yield
        return
    for number in (signal.SIGTTOU, signal.SIGTSTP):  # a group of our own has no shell that could continue it
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpid())
    try:
        yield
    finally:
        os.tcsetpgrp(terminal, group)


async def play(seconds: float | None) -> int:
    """The whole piece, from an empty stage to an empty stage. Returns the exit code."""
    end = None if seconds is None else time.monotonic() + seconds
    unanswered: list[str] = []
    scene = asyncio.create_task(perform(end, unanswered))
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop() -> None:
        for number in signals:  # from here on it is ending: a second signal changes nothing
            loop.add_signal_handler(number, lambda: None)
        scene.cancel()

    for number in signals:
        loop.add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await scene
    left = leftovers()
    if left:
        raise LabError(f"could not remove {', '.join(left)}")
    print("\neverything that the lab made is gone", flush=True)
    if unanswered:
        raise LabError(f"not answered: {', '.join(unanswered)}")
    return 0


async def perform(end: float | None, unanswered: list[str]) -> None:
    """Build, ping and watch until `end` or until cancelled. Appends to `unanswered`."""
    async with contextlib.AsyncExitStack() as undo:
        master = build(undo)
        directory = Path(tempfile.mkdtemp(prefix="ipvsw-lab-", dir="/run"))
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        socket = directory / "api.sock"
        config = directory / "ipvsw.toml"
        config.write_text(CONFIG.format(socket=socket, master=master))
        print(f"the configuration, {config}:\n\n{indent(config.read_text(), '    ')}", flush=True)

        client = Client(str(socket), timeout=5.0)
        await undo.enter_async_context(daemon(config, directory / "ipvswd.log", client))
        await settled()
        for source, target, addresses in PINGS:
            for address in addresses:
                if not await ping(source, target, address):
                    unanswered.append(f"{source} -> {target} {address}")
        for source, _, addresses in PINGS:
            for address in addresses:
                undo.enter_context(pinging(source, address))
        print(hints(socket), flush=True)
        await watch(client, end)


def hints(socket: Path) -> str:
    ipvsw = f"{Path(sys.executable).parent / 'ipvsw'} --socket {socket}"
    return f"""
Look around, in another terminal:

    ip netns exec ns0 bash
    {ipvsw} show
    {ipvsw} stats

Ctrl-C ends the lab.
"""
