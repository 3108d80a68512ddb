"""The log's formats and its limits."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from pathlib import Path

import pytest

from ipvsw.daemon import logs
from ipvsw.daemon.logs import ALIKE, ALTOGETHER, WINDOW, JournalHandler, Json, RateLimit, Text, is_journal


def record(text: str = "switch %s: port %s: %s", *, at: float = 1000.0, level: int = logging.INFO, **extra: str):  # type: ignore[no-untyped-def]
    made = logging.LogRecord("ipvsw", level, __file__, 7, text, ("lan", "a", "up") if "%" in text else None, None)
    made.created = at
    vars(made).update(extra)
    return made


def journal_fields(entry: bytes) -> dict[str, str]:
    """What journald reads of a datagram."""
    found = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", entry[:8])
            value, entry = entry[8 : 8 + length], entry[9 + length :]
        found[name.decode()] = value.decode()
    return found


def test_text_and_json_say_the_same() -> None:
    made = record(switch="lan", port="a", reason="x", event="port")
    assert Text().format(made) == "ipvswd: INFO: switch lan: port a: up"
    assert json.loads(Json().format(made)) == {
        "time": "1970-01-01T00:16:40.000+00:00",
        "level": "info",
        "message": "switch lan: port a: up",
        "event": "port",
        "switch": "lan",
        "port": "a",
        "reason": "x",
    }


def test_a_traceback_is_in_every_format() -> None:
    made = record("failed")
    try:
        raise ValueError("x")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: x" in Text().format(made)
    assert "ValueError: x" in json.loads(Json().format(made))["message"]
    assert "ValueError: x" in journal_fields(logs.journal_entry(made))["MESSAGE"]


def test_the_journal_gets_fields(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        handler = JournalHandler(str(tmp_path / "socket"))
        handler.emit(
            record("two\nlines", level=logging.WARNING, switch="lan", port="a", address="10.0.0.1", reason="r")
        )
        found = journal_fields(journal.recv(65536))
        handler.close()
    assert found["MESSAGE"] == "two\nlines"
    assert (found["PRIORITY"], found["SYSLOG_IDENTIFIER"]) == ("4", "ipvswd")
    assert [found[name] for name in ("SWITCH", "PORT", "ADDRESS", "REASON")] == ["lan", "a", "10.0.0.1", "r"]


def test_a_journal_that_takes_nothing_loses_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        handler = JournalHandler(str(tmp_path / "socket"))
    handler.emit(record("there"))
    handler.close()
    assert capsys.readouterr().err == "ipvswd: there\n"


def test_stderr_that_is_the_journal() -> None:
    with open(os.devnull) as file:
        found = os.fstat(file.fileno())
        assert is_journal(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not is_journal(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not is_journal(file.fileno(), {})


def test_a_storm_of_lines_is_summed_up() -> None:
    limit = RateLimit()
    assert sum(limit.filter(record(port="a")) for _ in range(100)) == ALIKE
    assert limit.filter(record(port="b")), "another port's"
    assert limit.filter(record("other", port="a")), "another line"
    assert limit.filter(record(level=logging.ERROR, port="a")), "an error"
    later = record(port="a", at=1000.0 + WINDOW)
    assert limit.filter(later)
    assert Text().format(later) == f"ipvswd: INFO: switch lan: port a: up ({100 - ALIKE} like it were left out)"
    after = record(port="a", at=1000.0 + WINDOW)
    assert limit.filter(after) and "left out" not in Text().format(after)


def test_all_lines_together_have_a_limit() -> None:
    limit = RateLimit()
    passed = sum(limit.filter(record(port=str(k))) for k in range(ALTOGETHER * 2))
    assert passed == ALTOGETHER
    assert len(limit._subjects) <= logs.SUBJECTS
    assert limit.filter(record(port="0", at=1000.0 + WINDOW))
    assert limit.filter(record(port="0", at=10.0)), "a clock that was set back"
