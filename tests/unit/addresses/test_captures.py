"""Captures of one switch: what is left of one that can't begin."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from ipvsw._fast import Datapath
from ipvsw.addresses.captures import Captures
from ipvsw.changes import Changes


class Commits:
    """Of a real data plane, which has no port."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath

    @contextlib.contextmanager
    def batch(self) -> Iterator[Datapath]:
        yield self.datapath
        self.datapath.commit()


@pytest.fixture
def captures() -> Iterator[Captures]:
    datapath = Datapath()
    yield Captures("lan", cast("Changes", Commits(datapath)), {}, lambda port: None)
    datapath.close()


def test_one_without_a_descriptor_for_its_reader_leaves_nothing(
    captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(fd: int) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Too many open files"):
        patched.setattr(os, "dup", scarce)
        with captures.open(None, "m0"):
            pass
    assert not captures.wants("any")
    with captures.open(None, "m0") as capture:
        assert captures.wants("any")
        (fd,) = capture.descriptors
        os.close(fd)
