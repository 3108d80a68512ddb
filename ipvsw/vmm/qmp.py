"""A port's device into a running QEMU and out of it, by QMP.

All or nothing: what was done before an error is undone. The library for QMP is wanted here alone, and only now.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

ANSWER = 10.0  # seconds that QEMU may take for a command
UNPLUG = 30.0  # seconds that the guest may take to release a device; with PCI Express it waits for 5


class QmpError(Exception):
    """One line: QEMU refused a command or did not reply. The guest is as it was."""


def attach(
    path: str, fds: Sequence[int], *, kind: str, name: str, device: str, mac: str, bus: str | None = None
) -> None:
    """Give the QEMU at the QMP socket `path` a network device over `fds`, one for each queue of a port of that kind.
    Errors: QmpError."""
    _run(path, _attach, fds, kind, name, device, mac, bus)


def detach(path: str, name: str) -> None:
    """Unplug it; returns when the guest has released it. Errors: QmpError."""
    _run(path, _detach, name)


def _run(path: str, work: Any, *arguments: Any) -> None:
    async def run() -> None:
        async with _connected(path) as qmp:
            await work(qmp, *arguments)

    asyncio.run(run())


@contextlib.asynccontextmanager
async def _connected(path: str) -> AsyncIterator[QMPClient]:
    try:
        from qemu.qmp import ExecuteError, QMPClient
        from qemu.qmp import QMPError as LibraryError
    except ImportError:
        raise QmpError("the Python library qemu.qmp is needed for this (pip install 'ipvsw[qmp]')") from None
    # Connected here, because the errors of the library say less about the cause.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise QmpError(f"{path}: {error.strerror or error}") from None
    qmp = QMPClient("ipvsw")
    try:
        await asyncio.wait_for(qmp.connect(sock), ANSWER)
        try:
            yield qmp
        finally:
            await qmp.disconnect()
    except ExecuteError as error:
        raise QmpError(f"QEMU: {error}") from None
    except TimeoutError:
        raise QmpError(f"{path}: QEMU doesn't answer; a QMP socket serves one client at a time") from None
    except (LibraryError, OSError) as error:
        raise QmpError(f"{path}: {error}") from None


async def _execute(qmp: QMPClient, command: str, **arguments: Any) -> object:
    return await asyncio.wait_for(qmp.execute(command, arguments), ANSWER)


async def _attach(
    qmp: QMPClient, fds: Sequence[int], kind: str, name: str, device: str, mac: str, bus: str | None
) -> None:
    async with contextlib.AsyncExitStack() as undo:
        names = []
        for number, fd in enumerate(fds):
            names.append(f"{name}-{number}")
            qmp.send_fd_scm(fd)
            await _execute(qmp, "getfd", fdname=names[-1])
            undo.push_async_callback(_forgive, qmp, "closefd", fdname=names[-1])
        await _execute(qmp, "netdev_add", id=name, **_netdev(kind, names))
        undo.push_async_callback(_forgive, qmp, "netdev_del", id=name)
        more: dict[str, Any] = {"bus": bus} if bus else {}
        if len(fds) > 1:
            more |= {"mq": True, "vectors": 2 * len(fds) + 2}
        await _execute(qmp, "device_add", driver=device, id=name, netdev=name, mac=mac, **more)
        undo.pop_all()


def _netdev(kind: str, names: Sequence[str]) -> dict[str, Any]:
    """The back end over descriptors of these names, in the words of QEMU's qapi/net.json. QEMU's own `stream` looks a
    name up in another thread (7.2), where it finds none; its `socket` speaks the same."""
    if kind == "stream":
        return {"type": "socket", "fd": names[0]}
    if kind == "dgram":
        return {"type": "dgram", "local": {"type": "fd", "str": names[0]}}
    return {"type": "tap", "fds" if len(names) > 1 else "fd": ":".join(names)}


async def _forgive(qmp: QMPClient, command: str, **arguments: Any) -> None:
    """What must be undone is perhaps not there: netdev_add takes the descriptors, even if it fails."""
    from qemu.qmp import ExecuteError

    with contextlib.suppress(ExecuteError):
        await _execute(qmp, command, **arguments)


async def _detach(qmp: QMPClient, name: str) -> None:
    from qemu.qmp import ExecuteError

    words = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
    with qmp.listener(words) as events:
        try:
            await _execute(qmp, "device_del", id=name)
        except ExecuteError as error:
            if error.error_class != "DeviceNotFound":
                raise
        else:
            await _gone(events, name)
    await _execute(qmp, "netdev_del", id=name)


async def _gone(events: Any, name: str) -> None:
    try:
        async with asyncio.timeout(UNPLUG):
            async for event in events:
                if event["data"].get("device") == name:
                    if event["event"] != "DEVICE_DELETED":
                        raise QmpError(f"{name}: the guest refuses to release it")
                    return
    except TimeoutError:
        raise QmpError(f"{name}: the guest hasn't released it within {UNPLUG:g} s; it still may") from None
