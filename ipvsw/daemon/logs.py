"""The log: as text, as JSON or into the journal; the same lines again and again are left out.

What a line is about stands beside its text, as attributes of the record that `extra` gave it: `FIELDS`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime

FORMATS = ("auto", "text", "json", "journal")
FIELDS = ("event", "switch", "port", "master", "address", "reason")
JOURNAL = "/run/systemd/journal/socket"

WINDOW = 10.0  # seconds
ALIKE = 20  # lines of one kind about one port that a window has
ALTOGETHER = 5000  # lines of a window: a thousand ports that come up have two each
SUBJECTS = 4096  # that are told apart

# syslog(3)'s, which the journal has as PRIORITY
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def setup(wanted: str, level: str, environment: Mapping[str, str] = os.environ) -> None:
    """`wanted` is one of FORMATS. Errors: OSError if the journal is wanted and there is none."""
    to_journal = wanted == "journal" or (wanted == "auto" and is_journal(sys.stderr.fileno(), environment))
    handler: logging.Handler = JournalHandler(JOURNAL) if to_journal else logging.StreamHandler()
    if not to_journal:
        handler.setFormatter(Json() if wanted == "json" else Text())
    handler.setLevel(level.upper())
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())


def is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """Whether what is written there goes to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def fields(record: logging.LogRecord) -> dict[str, str]:
    """What it is about."""
    return {name: str(value) for name in FIELDS if (value := getattr(record, name, ""))}


def text_of(record: logging.LogRecord) -> str:
    """One line, and those of a traceback."""
    text = record.getMessage()
    if left_out := getattr(record, "left_out", 0):
        text += f" ({left_out} like it were left out)"
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text


class Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"ipvswd: {record.levelname}: {text_of(record)}"


class Json(logging.Formatter):
    """An object a line."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": text_of(record)} | fields(record)
        return json.dumps(line, ensure_ascii=False)


class JournalHandler(logging.Handler):
    """Speaks the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of fields."""

    def __init__(self, path: str) -> None:
        """Errors: OSError if nobody listens there."""
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.connect(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.send(journal_entry(record))
        except OSError:  # full, or restarted just now: what it can't take is on stderr, which may be its own as well
            print(f"ipvswd: {text_of(record)}", file=sys.stderr)

    def close(self) -> None:
        self._socket.close()
        super().close()


def journal_entry(record: logging.LogRecord) -> bytes:
    entry = {
        "MESSAGE": text_of(record)[:MESSAGE_MAX],
        "PRIORITY": str(PRIORITIES.get(record.levelno, 6)),
        "SYSLOG_IDENTIFIER": "ipvswd",
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
    } | {name.upper(): value for name, value in fields(record).items()}
    return b"".join(_entry_field(name.encode(), value.encode("utf-8", "replace")) for name, value in entry.items())


MESSAGE_MAX = 32768  # characters; a datagram must fit the socket's buffer


def _entry_field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name + b"=" + value + b"\n"


class RateLimit(logging.Filter):
    """Lets ALIKE lines of one kind about one port pass in a window, and ALTOGETHER of all. The first line after that
    says how many were left out. Errors always pass."""

    def __init__(self) -> None:
        super().__init__()
        self._subjects: OrderedDict[tuple[object, ...], _Count] = OrderedDict()
        self._all = _Count()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        key = (record.msg, getattr(record, "switch", ""), getattr(record, "port", ""))
        count = self._subjects.pop(key, None) or _Count()
        self._subjects[key] = count
        if len(self._subjects) > SUBJECTS:
            self._subjects.popitem(last=False)
        left_out = count.left_out
        passes = count.take(record.created, ALIKE) and self._all.take(record.created, ALTOGETHER)
        if not passes:
            count.left_out = left_out + 1
            return False
        if left_out:
            record.left_out = left_out
            count.left_out = 0
        return True


class _Count:
    """Lines of the window that began at `since`."""

    __slots__ = ("left_out", "lines", "since")

    def __init__(self) -> None:
        self.since = 0.0
        self.lines = self.left_out = 0

    def take(self, now: float, most: int) -> bool:
        if not 0 <= now - self.since < WINDOW:  # a clock that was set back begins a window too
            self.since, self.lines = now, 0
        self.lines += 1
        return self.lines <= most
