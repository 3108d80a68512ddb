"""`ipvsw-extcap`: the switch's interfaces as interfaces of Wireshark, which runs this program to list and to capture.

Source: doc/extcap_example.py and wsdg "Adding Capture Interfaces And Log Sources" of Wireshark.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ipvsw import DEFAULT_SOCKET, __version__
from ipvsw.capture.filters import BadFilter, Filter
from ipvsw.capture.session import Ended, Stop, session
from ipvsw.capture.writer import record
from ipvsw.client import ApiError, Client, Unreachable

PREFIX = "ipvsw:"  # of the interfaces' names: Wireshark has others


def main(argv: Sequence[str] | None = None) -> int:
    """0 when it is done; else 1, with one line on stderr."""
    arguments, _ = _parser().parse_known_args(argv)  # each Wireshark has a few words more
    try:
        return _run(arguments)
    except (ApiError, Unreachable, BadFilter, OSError) as error:
        print(f"ipvsw-extcap: {error}", file=sys.stderr)
    except Ended:
        print("ipvsw-extcap: the daemon has ended", file=sys.stderr)
    return 1


def _run(arguments: argparse.Namespace) -> int:
    client = Client(arguments.socket)
    if arguments.extcap_interfaces:
        print(f"extcap {{version={__version__}}}")
        for value, display in _interfaces(client):
            print(f"interface {{value={PREFIX}{value}}}{{display={display}}}")
    elif arguments.extcap_dlts:
        print("dlt {number=1}{name=EN10MB}{display=Ethernet}")
    elif arguments.extcap_config:
        print(
            "arg {number=0}{call=--socket}{display=Socket of the daemon}{type=string}"
            f"{{default={DEFAULT_SOCKET}}}{{tooltip=of the ipvswd to capture from}}"
        )
    elif arguments.capture:
        return _capture(client, arguments)
    elif arguments.extcap_capture_filter is not None:
        _filter(arguments.extcap_capture_filter)  # Wireshark asks while it is typed
    return 0


def _interfaces(client: Client) -> list[tuple[str, str]]:
    """What to capture, and what Wireshark calls it. None if there is no daemon: an error would be shown at each start
    of Wireshark."""
    try:
        switches = client.switches()
    except (Unreachable, ApiError):
        return []
    found = []
    for switch in switches:
        name = switch["name"]
        found.append((name, f"ipvsw switch {name}"))
        found.append((f"{name}/master", f"ipvsw {name}, wire {switch['master']}"))
        found += [(f"{name}/{port['name']}", f"ipvsw port {name}/{port['name']}") for port in switch["ports"]]
    return found


def _capture(client: Client, arguments: argparse.Namespace) -> int:
    stop = Stop()
    matches = _filter(arguments.extcap_capture_filter)
    with session(client, (arguments.extcap_interface or "").removeprefix(PREFIX)) as frames:
        fifo = os.open(arguments.fifo, os.O_WRONLY)
        try:
            record(frames, fifo, matches, stop)
        finally:
            os.close(fifo)
    return 0


def _filter(expression: str | None) -> Filter | None:
    return Filter(expression) if expression else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ipvsw-extcap", description="Wireshark captures from ipvswd by this program.")
    parser.add_argument("--extcap-interfaces", action="store_true", help="list what can be captured")
    parser.add_argument("--extcap-interface", metavar="NAME", help="one of those")
    parser.add_argument("--extcap-dlts", action="store_true", help="the link type")
    parser.add_argument("--extcap-config", action="store_true", help="the options")
    parser.add_argument("--extcap-capture-filter", metavar="EXPRESSION", help="as pcap-filter(7) has it")
    parser.add_argument("--capture", action="store_true", help="capture")
    parser.add_argument("--fifo", metavar="PATH", help="where to write")
    parser.add_argument("--socket", default=DEFAULT_SOCKET, metavar="PATH", help="the daemon's [%(default)s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
