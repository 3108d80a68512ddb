"""ipvswd: the composition root. Command line, loop, signals, and the notification of systemd."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import importlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvloop

from ipvsw import DEFAULT_SOCKET, DEFAULT_STATE, __version__
from ipvsw.client import ApiError, Client, Unreachable
from ipvsw.config.again import ConfigFile
from ipvsw.daemon import keeper, logs, watchdog
from ipvsw.daemon.api import listener
from ipvsw.daemon.manager import Manager
from ipvsw.daemon.preflight import preflight, preflight_start
from ipvsw.daemon.state import VERSION
from ipvsw.linux.lasting.fdstore import FdStore, NoStore, SystemdStore, notify
from ipvsw.linux.lasting.keeperstore import KeeperStore
from ipvsw.linux.netlink import Netlink
from ipvsw.model import Config, Refused

if TYPE_CHECKING:
    from ipvsw.daemon.api.server import Server

log = logging.getLogger("ipvsw")

LEVELS = ("debug", "info", "warning", "error")
TAKEN_OVER = 0  # in the place of a signal
EXIT_FAILED, EXIT_USAGE = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 after an orderly end, 2 with one line on stderr if the configuration is refused (nothing was
    changed), 1 if the machine fails."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not (arguments.config or arguments.cleanup):
        parser.error("the following arguments are required: --config")
    try:
        logs.setup(arguments.log_format, arguments.log_level)
        file = ConfigFile(arguments.config or os.devnull)
        config = file.load() if arguments.config else Config()
        if arguments.check:
            asyncio.run(_check(config))
        elif arguments.cleanup:
            _allow_many_files()
            uvloop.run(_clean_up(config, file, arguments.socket or config.daemon.socket))
        else:
            _allow_many_files()
            socket_path = arguments.socket or config.daemon.socket
            if arguments.takeover:
                asyncio.run(_check_start(config))
                _take_over(socket_path)
            uvloop.run(_serve(config, file, socket_path))
    except Refused as error:
        print(f"ipvswd: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"ipvswd: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ipvswd", description="Network namespaces behind one MAC address.")
    parser.add_argument("--config", metavar="FILE", help="the configuration, TOML")
    parser.add_argument("--check", action="store_true", help="validate the configuration and end")
    parser.add_argument("--cleanup", action="store_true", help="remove what a killed ipvswd has left, and end")
    parser.add_argument("--takeover", action="store_true", help="go on in the place of the ipvswd that runs")
    parser.add_argument("--socket", metavar="PATH", help="the API's socket, instead of the configured one")
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="default: info")
    parser.add_argument(
        "--log-format", choices=logs.FORMATS, default="auto", help="auto: the journal if stderr is it, otherwise text"
    )
    parser.add_argument("--version", action="version", version=f"ipvswd {__version__}")
    return parser


async def _check(config: Config, *, untaken: bool = False) -> None:
    netlink = Netlink()
    try:
        await preflight(netlink, config, untaken=untaken)
    finally:
        netlink.close()


async def _check_start(config: Config) -> None:
    """Masters are still served by the daemon that is taken over."""
    netlink = Netlink()
    try:
        await preflight_start(netlink, config, untaken=False)
    finally:
        netlink.close()


def _allow_many_files() -> None:
    """Each port is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: Config, file: ConfigFile, socket_path: str) -> None:
    """Until SIGTERM or SIGINT. SIGHUP reads the configuration again. Errors: Refused, OSError."""
    signals = _queue_signals()
    try:
        store, held = _open_store(socket_path)
    except OSError:
        await _check(config, untaken=True)  # says which master is taken, if one is
        raise
    async with contextlib.AsyncExitStack() as ending:
        manager = Manager(file, store, held, _state_of(config, socket_path))
        ending.callback(lambda: store.end() if manager.started or not held else store.close())
        ending.push_async_callback(manager.stop)
        sockets = listener.open_sockets(socket_path, config.daemon.metrics, config.daemon.users_socket)
        ending.callback(sockets.close)
        await manager.start(config)
        server = await _serve_api(manager, sockets)
        ending.push_async_callback(server.close)
        log.info("version %s, API on %s", __version__, socket_path)
        _notify("READY=1")
        ending.callback(_notify, "STOPPING=1")
        if every := watchdog.interval(os.environ):
            feeding = asyncio.create_task(watchdog.feed(manager.beat, _notify, every))
            ending.callback(feeding.cancel)
        manager.taken_over = lambda: signals.put_nowait(TAKEN_OVER)
        while (number := await signals.get()) == signal.SIGHUP:
            await _reload(manager)
        if number == signal.SIGTERM and await asyncio.to_thread(store.is_followed):
            _notify("STOPPING=1")
            await manager.leave()
            number = TAKEN_OVER
        if number == TAKEN_OVER:
            await server.close()
            log.info("another ipvswd goes on")
            logging.shutdown()
            os._exit(0)  # undoing nothing: the other one has it


async def _serve_api(manager: Manager, sockets: listener.ApiSockets) -> Server:
    """The web server's library takes as long to load as all of the ports to go on, and they don't wait for it."""
    await asyncio.to_thread(importlib.import_module, "ipvsw.daemon.api.server")
    from ipvsw.daemon.api.server import serve

    return await serve(manager, sockets)


def _state_of(config: Config, socket_path: str) -> str:
    """Two daemons have two sockets, and must not have one file."""
    return config.daemon.state or (DEFAULT_STATE if socket_path == DEFAULT_SOCKET else "")


def _take_over(socket_path: str) -> None:
    """Have the daemon that serves there stop, and leave everything as it is. Errors: Refused."""
    try:
        Client(socket_path).take_over(VERSION)
    except Unreachable as error:
        log.info("there is nothing to take over: %s", error)
    except ApiError as error:
        raise Refused(str(error)) from None


async def _clean_up(config: Config, file: ConfigFile, socket_path: str) -> None:
    """Errors: OSError, EBUSY if a daemon runs."""
    store, held = _open_store(socket_path)
    manager = Manager(file, store, held)
    try:
        await manager.clean_up(config)
    finally:
        await manager.stop()
        store.end()


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


def _open_store(socket_path: str) -> tuple[FdStore, dict[str, int]]:
    """Of systemd if it has one for us, else a keeper's beside the API's socket; and what it holds. Errors: OSError,
    EBUSY if another daemon has the ports."""
    if os.environ.get("NOTIFY_SOCKET") and os.environ.get("FDSTORE"):
        store: FdStore = SystemdStore(os.environ)
        return store, store.take()
    store = KeeperStore(f"{socket_path}.keeper", [sys.executable, "-I", "-S", keeper.__file__])
    try:
        return store, store.take()
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise
        log.warning("there is no keeper, ports end with this daemon: %s", error.strerror or error)
        return NoStore(), {}


def _notify(state: str) -> None:
    with contextlib.suppress(OSError):
        notify(os.environ, state)


if __name__ == "__main__":
    sys.exit(main())
