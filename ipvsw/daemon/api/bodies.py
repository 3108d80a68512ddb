"""What the operations of the API take and return that is not in the model."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from ipvsw.config.file import ATTACH
from ipvsw.config.keys import MODE, Key
from ipvsw.config.port_keys import CHANGE


def _body(name: str, doc: str, keys: Iterable[Key]) -> type[Struct]:
    """A body that has some of `keys`: those without which the configuration would not do are required."""
    unset = msgspec.UNSET
    fields = [(key.name, key.type) if key.required else (key.name, key.type | msgspec.UnsetType, unset) for key in keys]
    return msgspec.defstruct(
        name,
        fields,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        omit_defaults=True,
        namespace={"__doc__": doc},
    )


AddPort = _body("AddPort", "A port to attach: the keys of `[[switch.port]]`, and those of its switch.", ATTACH)
SetMode = _body("SetMode", "What to change of a switch; at least one of them.", MODE)

ChangePort = _body("ChangePort", "What to change of a port.", CHANGE)


class TakeOver(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who takes over."""

    state: int  # version of the state that it reads


class Reloaded(Struct, frozen=True, kw_only=True):
    """What a reload has done, or would do, in order."""

    actions: tuple[str, ...]


class SavedConfig(Struct, frozen=True, kw_only=True):
    """What runs, as a configuration file."""

    toml: str


class Error(Struct, frozen=True, kw_only=True):
    """Why not: one line that names the place."""

    error: str
