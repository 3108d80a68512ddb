"""The API's JSON as records: what the model has, without the time that importing it takes."""

from __future__ import annotations

from typing import Any


class OtherVersion(Exception):
    """The daemon's answer lacks what is known of here."""


class Record:
    """One object; its fields are attributes. Errors of every attribute: OtherVersion."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update((name, records(value)) for name, value in fields.items())

    def __getattr__(self, name: str) -> Any:
        raise OtherVersion(f"{name} is missing")


def records(value: Any) -> Any:
    """`value` with a record in the place of every object."""
    if isinstance(value, dict):
        return Record(value)
    return [records(item) for item in value] if isinstance(value, list) else value
