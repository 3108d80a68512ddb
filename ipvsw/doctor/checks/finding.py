"""What a check gives. Every code has a section in docs/reference/doctor.md."""

from __future__ import annotations

from msgspec import Struct


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that bites."""

    code: str
    where: str  # a switch, SWITCH/PORT, or "host"
    text: str  # what is so, and what follows
    remedy: str  # what to do
