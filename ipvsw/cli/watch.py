"""`watch`: what happens, a line each."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from ipvsw.cli.command import Asked, Command, Failed, first, read_name
from ipvsw.cli.complete import Names

if TYPE_CHECKING:
    from ipvsw.client import Record


def _watch(asked: Asked) -> None:
    """Returns when the daemon ends, which is a failure."""
    for event in asked.client.events():
        if is_about(event, asked.name):
            print(json.dumps(event) if asked.json else line(event), flush=True)
    raise Failed("the daemon has ended")


def is_about(event: Record, name: str | None) -> bool:
    """Of the switch, port, SWITCH/PORT or master `name`; None: whatever it is."""
    switch, port, master = (event.get(key, "") for key in ("switch", "port", "master"))
    return name is None or event["event"] == "lost" or name in (switch, port, f"{switch}/{port}", master)


def line(event: Record) -> str:
    at = event["time"]
    clock = time.strftime("%H:%M:%S", time.localtime(at))
    return f"{clock}.{int(at * 1000) % 1000:03}  {event['event']:<9}  {event['text']}"


COMMANDS = (
    Command(
        name="watch",
        summary="what happens, as it happens",
        operands="[SWITCH|PORT|MASTER]",
        about="""\
Print what happens from now on, a line each, until Ctrl-C; with --json one JSON object a line.

Events:  state      a port or a master is up, down, waiting or failed
         change     the configuration was changed, by a reload or the API
         bound      an address is a port's from now on
         unbound    no port has it any more
         learned    a virtual machine has an address
         forgotten  its lease has ended, or it is not used any more
         duplicate  a port was refused an address that another or the master has
         refused    a port was refused an address that it may not have
         guard      a guard has dropped a port's frames
         repaired   what others had removed or changed was put back
         lost       so many events came that this reader missed some
""",
        read=read_name,
        run=_watch,
        complete=first(Names.both),
    ),
)
