"""The API's client: HTTP over the daemon's unix socket, with the standard library alone.

Answers are returned as JSON gave them; `model.py` says what is in them.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import struct
from typing import Any, cast
from urllib.parse import quote

Record = dict[str, Any]
"""One object of the JSON."""

TIMEOUT = 120.0
"""Seconds that one answer may take: a reload may attach a thousand ports."""


FDS_MAX = 253  # SCM_MAX_FD


class Unreachable(Exception):
    """No daemon answers: one line that names the socket."""


class ApiError(Exception):
    """The daemon answered, and said no."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """One daemon. Every method makes one request on a connection of its own.

    Errors of every method: Unreachable, ApiError.
    """

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout

    def switches(self) -> list[Record]:
        return cast("list[Record]", self.request("GET", "/v1/switches"))

    def switch(self, name: str) -> Record:
        return cast("Record", self.request("GET", f"/v1/switches/{quote(name, safe='')}"))

    def stats(self) -> list[Record]:
        return cast("list[Record]", self.request("GET", "/v1/stats"))

    def addresses(self) -> list[Record]:
        return cast("list[Record]", self.request("GET", "/v1/addresses"))

    def leases(self) -> list[Record]:
        return cast("list[Record]", self.request("GET", "/v1/leases"))

    def add_port(self, **port: Any) -> Record:
        """The keys of `AddPort` in openapi.json; those that are None are left out."""
        return cast("Record", self.request("POST", "/v1/ports", _given(port)))

    def delete_port(self, name: str) -> None:
        """`name` may be SWITCH/PORT."""
        self.request("DELETE", f"/v1/ports/{quote(name, safe='')}")

    def set_mode(self, name: str, *, mode: str | None = None, flag: str | None = None) -> Record:
        """Of the switch `name`, or of the one that has the port PORT or SWITCH/PORT."""
        return cast(
            "Record",
            self.request("PATCH", f"/v1/switches/{quote(name, safe='')}", _given({"mode": mode, "flag": flag})),
        )

    def hand_over(self, name: str) -> tuple[Record, list[int]]:
        """Descriptors of the port PORT or SWITCH/PORT, or of a free one on the switch `name`; the caller closes
        them. What their virtual machine must know is `HandedOver` in the model."""
        fds: list[int] = []
        try:
            handed = self.request("GET", f"/v1/ports/{quote(name, safe='')}/fd", fds=fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return cast("Record", handed), fds

    def reload(self) -> list[str]:
        """Returns what was done, one line each."""
        return cast("list[str]", self.request("POST", "/v1/reload")["actions"])

    def request(self, method: str, target: str, body: object = None, *, fds: list[int] | None = None) -> Any:
        """One request to `target` (quoted); returns what the JSON in the answer stands for, None for no body.
        Descriptors that come with it are put into `fds`."""
        connection = _Connection(self._path, self._timeout, fds)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, target, data, {} if data is None else {"Content-Type": "application/json"})
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        except (FileNotFoundError, ConnectionRefusedError):
            raise Unreachable(f"{self._path}: no daemon answers there; is ipvswd running?") from None
        except TimeoutError:
            raise Unreachable(f"{self._path}: no answer within {self._timeout:g} s") from None
        except OSError as error:
            raise Unreachable(f"{self._path}: {error.strerror or error}") from None
        except http.client.HTTPException as error:
            raise Unreachable(f"{self._path}: what answers there is not ipvswd ({type(error).__name__})") from None
        finally:
            connection.close()
        try:
            decoded = json.loads(content) if content else None
        except ValueError:
            raise ApiError(status, f"{self._path}: what answers there is not ipvswd (HTTP {status})") from None
        if status >= http.client.BAD_REQUEST:
            text = decoded.get("error") if isinstance(decoded, dict) else None
            raise ApiError(status, str(text or f"HTTP {status}"))
        return decoded


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float, fds: list[int] | None = None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._timeout = timeout
        self._fds = fds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) if self._fds is None else _Taking(self._fds)
        self.sock.settimeout(self._timeout)
        try:
            self.sock.connect(self._path)
        except ValueError as error:  # a NUL in the path
            raise OSError(str(error)) from None


class _Taking(socket.socket):
    """One that keeps what comes with SCM_RIGHTS."""

    def __init__(self, fds: list[int]) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._fds = fds

    def makefile(self, *_: Any, **__: Any) -> Any:
        return io.BufferedReader(_Reader(self, self._fds))


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, fds: list[int]) -> None:
        self._sock = sock
        self._fds = fds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Not socket.recv_fds: it drops the flags.
        data, control, _, _ = self._sock.recvmsg(len(buffer), socket.CMSG_SPACE(4 * FDS_MAX), socket.MSG_CMSG_CLOEXEC)
        for level, kind, packed in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._fds += [fd for (fd,) in struct.iter_unpack("=i", packed)]
        buffer[: len(data)] = data
        return len(data)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
