"""ipvswd: the composition root. Command line, loop, signals, and the notification of systemd."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence

import uvloop

from ipvsw import __version__
from ipvsw.config.file import load
from ipvsw.daemon import api
from ipvsw.daemon.manager import Manager
from ipvsw.daemon.preflight import preflight
from ipvsw.linux.netlink import Netlink
from ipvsw.model import Config, Refused

log = logging.getLogger("ipvsw")

LEVELS = ("debug", "info", "warning", "error")
EXIT_FAILED, EXIT_USAGE = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 after an orderly end, 2 with one line on stderr if the configuration is refused (nothing was
    changed), 1 if the machine fails."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr, format="ipvswd: %(levelname)s: %(message)s"
    )
    try:
        config = load(arguments.config)
        if arguments.check:
            asyncio.run(_check(config))
        else:
            _allow_many_files()
            uvloop.run(_serve(config, arguments.config, arguments.socket or config.daemon.socket))
    except Refused as error:
        print(f"ipvswd: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"ipvswd: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ipvswd", description="Network namespaces behind one MAC address.")
    parser.add_argument("--config", metavar="FILE", required=True, help="the configuration, TOML")
    parser.add_argument("--check", action="store_true", help="validate the configuration and end")
    parser.add_argument("--socket", metavar="PATH", help="the API's socket, instead of the configured one")
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="default: info")
    parser.add_argument("--version", action="version", version=f"ipvswd {__version__}")
    return parser


async def _check(config: Config) -> None:
    netlink = Netlink()
    try:
        await preflight(netlink, config)
    finally:
        netlink.close()


def _allow_many_files() -> None:
    """Each port is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: Config, path: str, socket_path: str) -> None:
    """Until SIGTERM or SIGINT. SIGHUP reads the configuration again. Errors: Refused, OSError."""
    signals = _queue_signals()
    manager = Manager(path)
    async with contextlib.AsyncExitStack() as ending:
        ending.push_async_callback(manager.stop)
        await manager.start(config)
        server = await api.serve(manager, socket_path)
        ending.push_async_callback(server.close)
        log.info("version %s, API on %s", __version__, socket_path)
        _notify("READY=1")
        ending.callback(_notify, "STOPPING=1")
        while await signals.get() == signal.SIGHUP:
            await _reload(manager)


def _queue_signals() -> asyncio.Queue[int]:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, signals.put_nowait, int(number))
    return signals


async def _reload(manager: Manager) -> None:
    try:
        actions = await manager.reload()
    except Refused as error:
        log.error("nothing is changed: %s", error)
    else:
        log.info("configuration read again: %d changes", len(actions))


def _notify(state: str) -> None:
    """Notify systemd, if it has started us (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address)


if __name__ == "__main__":
    sys.exit(main())
