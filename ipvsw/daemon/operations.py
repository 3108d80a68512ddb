"""What can be asked of the daemon: one table, `ROUTES`, from which both the router and the OpenAPI
document are made. The document's schemas come from the model, so that it can't say what isn't so.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

import msgspec
from msgspec import Struct

from ipvsw import __version__
from ipvsw.config.file import ConfigError, read_attach, read_mode_change
from ipvsw.linux.peercred import Peer
from ipvsw.model import (
    AddressStatus,
    Flag,
    HandedOver,
    Kind,
    LeaseStatus,
    MacSource,
    Mode,
    NotFound,
    PortConfig,
    PortStatus,
    Refused,
    SwitchStats,
    SwitchStatus,
    Who,
)

T = TypeVar("T")


class BadBody(Exception):
    """What was sent is not what it must be: one line that names the place."""


class Control(Protocol):
    """What the daemon does for the API. Errors of every change: Refused."""

    def switches(self) -> tuple[SwitchStatus, ...]: ...
    def stats(self) -> tuple[SwitchStats, ...]: ...
    def leases(self) -> tuple[LeaseStatus, ...]: ...
    async def add_port(self, master: str, port: PortConfig, mode: Mode | None, flag: Flag | None) -> PortStatus:
        """Attach a port to the switch of `master`, which is made if there is none."""

    async def delete_port(self, port: str, switch: str | None) -> None: ...
    async def set_mode(self, name: str, mode: Mode | None, flag: Flag | None) -> SwitchStatus:
        """`name` is that of a switch, or of a port on it."""

    async def hand_over(self, name: str, peer: Peer) -> tuple[HandedOver, list[int]]:
        """Descriptors of the port `name`, or of one on the switch `name` that has none yet; the caller closes them.
        Errors: also Forbidden."""

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration again; returns what was done, printable."""


# ---------------------------------------------------------------------------- bodies that the model has no name for


class AddPort(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A port to attach: the keys of `[[switch.port]]`, and those of its switch."""

    master: str
    name: str
    ifname: str | msgspec.UnsetType = msgspec.UNSET
    netns: str | msgspec.UnsetType = msgspec.UNSET
    addresses: tuple[str, ...] = ()
    gateway: tuple[str, ...] = ()
    mtu: int | msgspec.UnsetType = msgspec.UNSET
    kind: Kind | msgspec.UnsetType = msgspec.UNSET
    mac: MacSource | msgspec.UnsetType = msgspec.UNSET
    queues: int | msgspec.UnsetType = msgspec.UNSET
    owner: Who | msgspec.UnsetType = msgspec.UNSET
    group: Who | msgspec.UnsetType = msgspec.UNSET
    allow: tuple[Who, ...] = ()
    learn: bool | msgspec.UnsetType = msgspec.UNSET
    max_learned: int | msgspec.UnsetType = msgspec.UNSET
    path: str | msgspec.UnsetType = msgspec.UNSET
    connect: str | msgspec.UnsetType = msgspec.UNSET
    local: str | msgspec.UnsetType = msgspec.UNSET
    remote: str | msgspec.UnsetType = msgspec.UNSET
    mode: Mode | msgspec.UnsetType = msgspec.UNSET
    flag: Flag | msgspec.UnsetType = msgspec.UNSET


class SetMode(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to change of a switch; at least one of them."""

    mode: Mode | msgspec.UnsetType = msgspec.UNSET
    flag: Flag | msgspec.UnsetType = msgspec.UNSET


class Reloaded(Struct, frozen=True, kw_only=True):
    """What a reload did, in order."""

    actions: tuple[str, ...]


class Error(Struct, frozen=True, kw_only=True):
    """Why not: one line that names the place."""

    error: str


# ---------------------------------------------------------------------------- handlers


class Call(Struct, frozen=True, kw_only=True):
    """What a request brings: `name` from its path, "" if the path has none, and who sent it."""

    name: str
    body: bytes
    peer: Peer = Peer(None)


async def _list_switches(control: Control, call: Call) -> tuple[SwitchStatus, ...]:
    return control.switches()


async def _get_switch(control: Control, call: Call) -> SwitchStatus:
    name = call.name
    for switch in control.switches():
        if switch.name == name:
            return switch
    raise NotFound(f"there is no switch {json.dumps(name)}")


async def _list_stats(control: Control, call: Call) -> tuple[SwitchStats, ...]:
    return control.stats()


async def _list_addresses(control: Control, call: Call) -> tuple[AddressStatus, ...]:
    return tuple(one for switch in control.switches() for port in switch.ports for one in port.addresses)


async def _list_leases(control: Control, call: Call) -> tuple[LeaseStatus, ...]:
    return control.leases()


async def _add_port(control: Control, call: Call) -> PortStatus:
    return await control.add_port(*_read(call, read_attach))


async def _delete_port(control: Control, call: Call) -> None:
    switch, port = _find_port(control, call.name)
    await control.delete_port(port, switch)


async def _hand_over(control: Control, call: Call) -> tuple[HandedOver, list[int]]:
    return await control.hand_over(call.name, call.peer)


async def _set_mode(control: Control, call: Call) -> SwitchStatus:
    mode, flag = _read(call, read_mode_change)
    name = call.name
    if all(switch.name != name for switch in control.switches()):
        name, _ = _find_port(control, name)
    return await control.set_mode(name, mode, flag)


async def _reload(control: Control, call: Call) -> Reloaded:
    return Reloaded(actions=await control.reload())


def _find_port(control: Control, name: str) -> tuple[str, str]:
    """The switch and the port that PORT or SWITCH/PORT names. Errors: NotFound, Refused if several."""
    wanted, slash, port = name.rpartition("/")
    found = [
        switch.name
        for switch in control.switches()
        if (not slash or switch.name == wanted) and any(one.name == port for one in switch.ports)
    ]
    if not found:
        raise NotFound(f"there is no port {json.dumps(name)}")
    if len(found) > 1:
        every = ", ".join(f"{switch}/{port}" for switch in found)
        raise Refused(f"port {json.dumps(name)} is on several switches: say which of {every}")
    return found[0], port


def _read(call: Call, reader: Callable[[object], T]) -> T:
    try:
        return reader(json.loads(call.body))
    except json.JSONDecodeError as error:
        raise BadBody(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ConfigError as error:
        raise BadBody(str(error)) from None
    except (ValueError, RecursionError):
        raise BadBody("the document: not JSON that can be read") from None


# ---------------------------------------------------------------------------- what there is


class Route(Struct, frozen=True, kw_only=True):
    """One operation. `returns` and `takes` are types of the model or of this file. What is `handed` comes with
    descriptors, and is for whom the operation itself lets have them."""

    method: str
    path: str
    name: str
    summary: str
    handler: Callable[[Control, Call], Awaitable[object]]
    returns: Any = None
    takes: Any = None
    status: int = 200
    errors: tuple[int, ...] = ()
    handed: bool = False


ROUTES = (
    Route(
        method="GET",
        path="/v1/switches",
        name="listSwitches",
        summary="Every switch with its ports and their addresses",
        handler=_list_switches,
        returns=tuple[SwitchStatus, ...],
    ),
    Route(
        method="GET",
        path="/v1/switches/{name}",
        name="getSwitch",
        summary="One switch",
        handler=_get_switch,
        returns=SwitchStatus,
        errors=(404,),
    ),
    Route(
        method="PATCH",
        path="/v1/switches/{name}",
        name="setMode",
        summary="Change mode and flag of a switch, named by itself or by a port on it (PORT or SWITCH/PORT)",
        handler=_set_mode,
        takes=SetMode,
        returns=SwitchStatus,
        errors=(400, 403, 404, 409),
    ),
    Route(
        method="GET",
        path="/v1/stats",
        name="listStats",
        summary="The counters of every switch and port",
        handler=_list_stats,
        returns=tuple[SwitchStats, ...],
    ),
    Route(
        method="GET",
        path="/v1/addresses",
        name="listAddresses",
        summary="The address table",
        handler=_list_addresses,
        returns=tuple[AddressStatus, ...],
    ),
    Route(
        method="GET",
        path="/v1/leases",
        name="listLeases",
        summary="What DHCP servers have leased to the ports' clients",
        handler=_list_leases,
        returns=tuple[LeaseStatus, ...],
    ),
    Route(
        method="POST",
        path="/v1/ports",
        name="addPort",
        summary="Attach a port to the switch of a master, which is made if there is none",
        handler=_add_port,
        takes=AddPort,
        returns=PortStatus,
        status=201,
        errors=(400, 403, 404, 409),
    ),
    Route(
        method="DELETE",
        path="/v1/ports/{name}",
        name="deletePort",
        summary="Remove a port, named PORT or SWITCH/PORT",
        handler=_delete_port,
        status=204,
        errors=(403, 404, 409),
    ),
    Route(
        method="GET",
        path="/v1/ports/{name}/fd",
        name="handOver",
        summary="The descriptors of a virtual machine's port, by SCM_RIGHTS with the answer's first byte. Of a switch:"
        " those of a port that is free",
        handler=_hand_over,
        returns=HandedOver,
        errors=(403, 404, 409),
        handed=True,
    ),
    Route(
        method="POST",
        path="/v1/reload",
        name="reload",
        summary="Read the configuration file again and do what has changed in it",
        handler=_reload,
        returns=Reloaded,
        errors=(403, 409),
    ),
)

REASONS = {
    200: "Done",
    201: "Made",
    204: "Done",
    400: "The body is not what it must be; the error names the place",
    403: "Only root and the daemon's own user may change anything, or have what they are not allowed",
    404: "There is no such switch or port",
    409: "The daemon won't; nothing was changed",
}
_PARAMETERS = {"name": "A switch or a port. A slash in SWITCH/PORT is written %2F"}


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document of `ROUTES`."""
    types = [one for route in ROUTES for one in (route.takes, route.returns) if one is not None]
    schemas, components = msgspec.json.schema_components([*types, Error], ref_template="#/components/schemas/{name}")
    schema_of = dict(zip([*types, Error], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary, "responses": {}}
        names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
        if names:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
            for parameter in operation["parameters"]:
                parameter["description"] = _PARAMETERS[parameter["name"]]
        if route.takes is not None:
            operation["requestBody"] = {"required": True, "content": _content(schema_of[route.takes])}
        for status in (route.status, *route.errors):
            answer: dict[str, Any] = {"description": REASONS[status]}
            returns = route.returns if status == route.status else Error
            if returns is not None:
                answer["content"] = _content(schema_of[returns])
            operation["responses"][str(status)] = answer
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "ipvswd",
            "version": __version__,
            "description": "A userspace IP-VLAN switch. HTTP on a unix socket: every answer is JSON, every error"
            ' {"error": "one line"}.',
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    return cast("dict[str, Any]", json.loads(json.dumps(document)))  # as it is served: no tuples


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
