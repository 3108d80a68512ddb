"""`ipvsw-qemu-helper`: in the place of QEMU's bridge helper, which any user may run.

QEMU gives it a socket and a name, and expects the descriptor of a TAP by that socket. Here the name is a port's, or
a switch's that has a free one; the daemon decides who may have it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Sequence

from ipvsw import DEFAULT_SOCKET
from ipvsw.client import ApiError, Client, Unreachable


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the descriptor is sent; else 1, with one line on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        handed, fds = Client(arguments.socket).hand_over(arguments.br)
        with contextlib.ExitStack() as closing:
            for fd in fds:
                closing.callback(os.close, fd)
            if handed["kind"] not in ("macvtap", "tap"):
                raise OSError(f"{handed['port']} is of kind {handed['kind']}; QEMU takes a TAP from a helper")
            if len(fds) != 1:
                raise OSError(f"{handed['port']} has {len(fds)} queues; QEMU takes one from a helper")
            with socket.socket(fileno=os.dup(arguments.fd)) as to:
                socket.send_fds(to, [b"\0"], fds)
    except (ApiError, Unreachable, OSError) as error:
        print(f"ipvsw-qemu-helper: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ipvsw-qemu-helper", description="Gives QEMU a port of ipvswd.")
    parser.add_argument("--use-vnet", action="store_true", help="what QEMU says; there is always such a header")
    parser.add_argument("--fd", type=int, required=True, metavar="N", help="the socket to send the descriptor by")
    parser.add_argument("--br", default="br0", metavar="NAME", help="a port, or a switch")
    parser.add_argument("--socket", default=f"{DEFAULT_SOCKET}.fd", metavar="PATH", help="the daemon's [%(default)s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
