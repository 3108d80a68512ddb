"""The API's client: HTTP over the daemon's unix socket, with the standard library alone.

Answers are returned as JSON gave them; `model.py` has their structures. It does not use `http.client`, whose imports
(`ssl`, `email`) take longer than a request, and which cannot receive descriptors.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any, cast

Record = dict[str, Any]
"""One object of the JSON."""

TIMEOUT = 120.0
"""Seconds that one answer may take: a reload may attach a thousand ports."""


FDS_MAX = 253  # SCM_MAX_FD
RECEIVE = 65536  # bytes
NOT_OURS = "what answers there is not ipvswd"


class Unreachable(Exception):
    """No daemon answers: one line that names the socket."""


class ApiError(Exception):
    """The daemon answered, and said no."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Stream:
    """Server-sent events, each with one value. `connection` is readable when there may be more."""

    def __init__(self, connection: socket.socket, data: bytes) -> None:
        """`data` has come already."""
        self.connection = connection
        self._data = data

    def read(self) -> list[Record] | None:
        """What is there, or comes next: maybe nothing yet. None: the daemon has ended. Errors: OSError."""
        if b"\n" not in self._data:
            part = self.connection.recv(RECEIVE)
            if not part:
                return None
            self._data += part
        *lines, self._data = self._data.split(b"\n")
        return [json.loads(line[5:]) for line in lines if line.startswith(b"data:")]


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
        return cast("Record", self.request("GET", f"/v1/switches/{_quoted(name)}"))

    def stats(self) -> list[Record]:
        return cast("list[Record]", self.request("GET", "/v1/stats"))

    def addresses(self) -> list[Record]:
        return cast("list[Record]", self.request("GET", "/v1/addresses"))

    def leases(self) -> list[Record]:
        return cast("list[Record]", self.request("GET", "/v1/leases"))

    def add_port(self, *, netns_fd: int | None = None, **port: Any) -> Record:
        """The keys of `AddPort` in openapi.json; those that are None are left out. `netns_fd` instead of `netns` is a
        descriptor of the namespace, which stays the caller's."""
        brought = () if netns_fd is None else (netns_fd,)
        return cast("Record", self.request("POST", "/v1/ports", _given(port), brought=brought))

    def change_port(self, name: str, **port: Any) -> Record:
        """`name` may be SWITCH/PORT; the keys of `ChangePort` in openapi.json."""
        return cast("Record", self.request("PATCH", f"/v1/ports/{_quoted(name)}", port))

    def delete_port(self, name: str) -> None:
        """`name` may be SWITCH/PORT."""
        self.request("DELETE", f"/v1/ports/{_quoted(name)}")

    def labelled(self, label: str) -> list[Record]:
        """The switches that have ports with that label, or one that begins with it and a colon; with these alone."""
        return cast("list[Record]", self.request("GET", f"/v1/labels/{_quoted(label)}"))

    def delete_labelled(self, label: str) -> None:
        """The ports that `labelled` gives."""
        self.request("DELETE", f"/v1/labels/{_quoted(label)}")

    def set_mode(self, name: str, *, mode: str | None = None, flag: str | None = None) -> Record:
        """Of the switch `name`, or of the one that has the port PORT or SWITCH/PORT, or that master."""
        return cast(
            "Record",
            self.request("PATCH", f"/v1/switches/{_quoted(name)}", _given({"mode": mode, "flag": flag})),
        )

    def hand_over(self, name: str) -> tuple[Record, list[int]]:
        """Descriptors of the port PORT or SWITCH/PORT, or of a free one on the switch `name`; the caller closes
        them. What their virtual machine must know is `HandedOver` in the model."""
        fds: list[int] = []
        try:
            handed = self.request("GET", f"/v1/ports/{_quoted(name)}/fd", fds=fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return cast("Record", handed), fds

    def reload(self) -> list[str]:
        """Returns what was done, one line each."""
        return cast("list[str]", self.request("POST", "/v1/reload")["actions"])

    def trace(self, **asked: Any) -> Record:
        """What would become of a frame (`TraceStatus` in the model); the keys of `TraceAsked`."""
        return cast("Record", self.request("POST", "/v1/trace", _given(asked)))

    def take_over(self, state: int) -> None:
        """Have the daemon leave everything to one that reads a state of that version, and end."""
        self.request("POST", "/v1/takeover", {"state": state})

    def plan(self) -> list[str]:
        """What `reload` would do, one line each."""
        return cast("list[str]", self.request("POST", "/v1/plan")["actions"])

    def config(self) -> str:
        """What runs, as the text of a configuration file."""
        return cast("str", self.request("GET", "/v1/config")["toml"])

    def events(self) -> Iterator[Record]:
        """What happens from now on (`EventStatus` in the model); ends when the daemon does."""
        with self._streaming("GET", "/v1/events") as stream:
            stream.connection.settimeout(None)
            while (some := stream.read()) is not None:
                yield from some

    @contextlib.contextmanager
    def capture(self, at: str = "") -> Iterator[tuple[int, Stream]]:
        """Frames copied for us while the context lasts: the descriptor of the memory that has them, and the stream of
        what must be known of it (`CaptureStatus` in the model), of which the first is there already."""
        fds: list[int] = []
        try:
            with self._streaming("POST", "/v1/captures", {"at": at}, fds) as stream:
                yield fds[0], stream
        finally:
            for fd in fds:
                os.close(fd)

    @contextlib.contextmanager
    def _streaming(
        self, method: str, target: str, body: object = None, fds: list[int] | None = None
    ) -> Iterator[Stream]:
        """A request whose answer has no end, and has begun."""
        with self._connected() as connection:
            connection.sendall(_request(method, target, body, version="1.0"))  # of which no answer is chunked
            status, head, data = _read_head(connection, fds)
            if status >= 400:
                self._decode(status, _read_content(connection, None, head, data))
            yield Stream(connection, data)

    def request(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        fds: list[int] | None = None,
        brought: Sequence[int] = (),
    ) -> Any:
        """One request to `target` (quoted); returns what the JSON in the answer stands for, None for no body.
        Descriptors that come with it are put into `fds`; those in `brought` go with the request."""
        with self._connected() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
                content = _request(method, target, body)
                sent = socket.send_fds(connection, [content], brought) if brought else 0
                connection.sendall(content[sent:])
            status, head, data = _read_head(connection, fds)
            content = _read_content(connection, fds, head, data)
        return self._decode(status, content)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._timeout)
                connection.connect(self._path)
                yield connection
        except (FileNotFoundError, ConnectionRefusedError):
            raise Unreachable(f"{self._path}: no daemon answers there; is ipvswd running?") from None
        except TimeoutError:
            raise Unreachable(f"{self._path}: no answer within {self._timeout:g} s") from None
        except OSError as error:
            raise Unreachable(f"{self._path}: {error.strerror or error}") from None
        except ValueError as error:  # a NUL in the path, or no HTTP
            raise Unreachable(f"{self._path}: {error}") from None

    def _decode(self, status: int, content: bytes) -> Any:
        try:
            decoded = json.loads(content) if content else None
        except ValueError:
            raise ApiError(status, f"{self._path}: {NOT_OURS} (HTTP {status})") from None
        if status >= 400:
            text = decoded.get("error") if isinstance(decoded, dict) else None
            raise ApiError(status, str(text or f"HTTP {status}"))
        return decoded


def _quoted(name: str) -> str:
    """As one part of a path."""
    from urllib.parse import quote  # most requests need none, and pay for none

    return quote(name, safe="")


def _request(method: str, target: str, body: object, version: str = "1.1") -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", "Connection: close"]
    lines.append(f"Content-Length: {len(content)}")
    if content:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + content


def _read_head(connection: socket.socket, fds: list[int] | None) -> tuple[int, bytes, bytes]:
    """Status and head of the final answer (RFC 9112), and what came with it of the content. Errors: OSError, ValueError
    if it is not HTTP."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            part = _receive(connection, fds)
            data += part
            if not data:
                raise ConnectionResetError("the connection was closed without an answer")
            if not part or not data.startswith(b"HTTP/1."[: len(data)]):
                raise ValueError(NOT_OURS)
        head, _, data = data.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1\.[01] ([0-9]{3})", head)
        if found is None:
            raise ValueError(NOT_OURS)
        if not found[1].startswith(b"1"):  # not an interim one
            return int(found[1]), head, data


def _read_content(connection: socket.socket, fds: list[int] | None, head: bytes, data: bytes) -> bytes:
    """Errors: OSError."""
    length = re.search(rb"^content-length:[ \t]*([0-9]+)", head, re.IGNORECASE | re.MULTILINE)
    while length is None or len(data) < int(length[1]):
        part = _receive(connection, fds)
        if not part:
            break
        data += part
    return data


def _receive(connection: socket.socket, fds: list[int] | None) -> bytes:
    """Some bytes, b"" at the end; descriptors that come with them are put into `fds`."""
    if fds is None:
        return connection.recv(RECEIVE)
    data, found = receive_fds(connection, RECEIVE, FDS_MAX)
    fds += found
    return data


def receive_fds(connection: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Up to `size` bytes, and the descriptors that come with them, which no program that is started inherits: what
    socket.recv_fds does, which drops the flag for that. There may be one more than `most`: the kernel pads the room for
    them. Errors: OSError."""
    data, control, _, _ = connection.recvmsg(size, socket.CMSG_SPACE(4 * most), socket.MSG_CMSG_CLOEXEC)
    packed = [part for level, kind, part in control if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)]
    return data, [fd for part in packed for (fd,) in struct.iter_unpack("=i", part)]


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
