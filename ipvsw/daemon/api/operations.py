"""The operations of the API: one table, `ROUTES`, from which both the router and the OpenAPI document are made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from ipvsw.config.file import ConfigError, place_by_descriptor, read_attach, read_mode_change, read_port_change
from ipvsw.config.write import write
from ipvsw.daemon.api.bodies import AddPort, ChangePort, Reloaded, SavedConfig, SetMode, TakeOver
from ipvsw.daemon.api.contract import Feed, Manager
from ipvsw.linux.namespaces import given
from ipvsw.linux.peercred import Peer
from ipvsw.model import Flag, Mode, PortConfig
from ipvsw.status import (
    AddressStatus,
    CaptureAsked,
    CaptureStatus,
    EventStatus,
    HandedOver,
    LeaseStatus,
    PortStatus,
    SwitchStats,
    SwitchStatus,
    TraceAsked,
    TraceStatus,
)

T = TypeVar("T")


class BadBody(Exception):
    """The body is not valid: one line that names the place."""


STREAM = "text/event-stream"  # the content of an answer that has no end
# ---------------------------------------------------------------------------- handlers


class Call(Struct, frozen=True, kw_only=True):
    """One request: `name` from its path, "" if the path has none, the user who sent it, and the descriptors that came
    with it, which stay the connection's."""

    name: str
    body: bytes
    peer: Peer = Peer(None)
    descriptors: tuple[int, ...] = ()


async def _list_switches(manager: Manager, call: Call) -> tuple[SwitchStatus, ...]:
    return manager.switches()


async def _get_switch(manager: Manager, call: Call) -> SwitchStatus:
    return manager.switch(call.name)


async def _list_labelled(manager: Manager, call: Call) -> tuple[SwitchStatus, ...]:
    return manager.labelled(call.name)


async def _delete_labelled(manager: Manager, call: Call) -> None:
    await manager.delete_labelled(call.name)


async def _list_stats(manager: Manager, call: Call) -> tuple[SwitchStats, ...]:
    return manager.stats()


async def _list_addresses(manager: Manager, call: Call) -> tuple[AddressStatus, ...]:
    return tuple(one for switch in manager.switches() for port in switch.ports for one in port.addresses)


async def _list_leases(manager: Manager, call: Call) -> tuple[LeaseStatus, ...]:
    return manager.leases()


async def _add_port(manager: Manager, call: Call) -> PortStatus:
    # 20,000 addresses take half a second to read.
    return await add_in_namespace(manager, call, *await asyncio.to_thread(read_body, call, read_attach))


async def add_in_namespace(
    manager: Manager, call: Call, master: str, port: PortConfig, mode: Mode | None, flag: Flag | None
) -> PortStatus:
    """The namespace may have come as a descriptor."""
    if not call.descriptors:
        return await manager.add_port(master, port, mode, flag)
    try:
        with given(call.descriptors[0]) as netns:
            return await manager.add_port(master, place_by_descriptor(port, netns), mode, flag)
    except ConfigError as error:
        raise BadBody(str(error)) from None
    except OSError as error:
        raise BadBody(f"the descriptor {error.strerror}") from None


async def _change_port(manager: Manager, call: Call) -> PortStatus:
    return await manager.change_port(call.name, lambda port: read_body(call, lambda body: read_port_change(body, port)))


async def _delete_port(manager: Manager, call: Call) -> None:
    await manager.delete_port(call.name)


async def _hand_over(manager: Manager, call: Call) -> tuple[HandedOver, list[int]]:
    return await manager.hand_over(call.name, call.peer)


async def _set_mode(manager: Manager, call: Call) -> SwitchStatus:
    mode, flag = read_body(call, read_mode_change)
    return await manager.set_mode(call.name, mode, flag)


async def _watch(manager: Manager, call: Call) -> AbstractContextManager[Feed]:
    return manager.events.watch()


async def _trace(manager: Manager, call: Call) -> TraceStatus:
    return await manager.trace(_decode(call, TraceAsked))


async def _capture(manager: Manager, call: Call) -> AbstractContextManager[Feed]:
    return manager.capture(_decode(call, CaptureAsked))


async def _take_over(manager: Manager, call: Call) -> None:
    await manager.take_over(_decode(call, TakeOver).state)


async def _reload(manager: Manager, call: Call) -> Reloaded:
    return Reloaded(actions=await manager.reload())


async def _plan_reload(manager: Manager, call: Call) -> Reloaded:
    return Reloaded(actions=await manager.plan())


async def _get_config(manager: Manager, call: Call) -> SavedConfig:
    return SavedConfig(toml=await asyncio.to_thread(write, manager.configuration()))


def _decode(call: Call, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(call.body, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadBody(str(error)) from None


def read_body(call: Call, reader: Callable[[object], T]) -> T:
    try:
        return reader(json.loads(call.body))
    except json.JSONDecodeError as error:
        raise BadBody(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ConfigError as error:
        raise BadBody(str(error)) from None
    except (ValueError, RecursionError):
        raise BadBody("the document: not valid JSON") from None


# ---------------------------------------------------------------------------- operations


class Route(Struct, frozen=True, kw_only=True):
    """One operation. `returns` and `takes` are types of the model or of `bodies`. One that is `handed` sends
    descriptors too, and checks itself which user may get them. One that `streams` has no end: its handler gives a
    context with a feed, whose values `returns` is the type of."""

    method: str
    path: str
    name: str
    summary: str
    handler: Callable[[Manager, Call], Awaitable[object]]
    returns: Any = None
    takes: Any = None
    status: int = 200
    errors: tuple[int, ...] = ()
    handed: bool = False
    streams: bool = False


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
        summary="Change mode and flag of a switch, named by itself, its master or a port on it (PORT or SWITCH/PORT)",
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
        summary="Attach a port to the switch of a master, which is made if there is none. The namespace may come as a"
        " descriptor, by SCM_RIGHTS with the request's first byte, instead of `netns`",
        handler=_add_port,
        takes=AddPort,
        returns=PortStatus,
        status=201,
        errors=(400, 403, 404, 409),
    ),
    Route(
        method="PATCH",
        path="/v1/ports/{name}",
        name="changePort",
        summary="Change a port, named PORT or SWITCH/PORT, in place",
        handler=_change_port,
        takes=ChangePort,
        returns=PortStatus,
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
        path="/v1/labels/{name}",
        name="listLabelled",
        summary="The ports with a label, or one that begins with it and a colon, in their switches",
        handler=_list_labelled,
        returns=tuple[SwitchStatus, ...],
    ),
    Route(
        method="DELETE",
        path="/v1/labels/{name}",
        name="deleteLabelled",
        summary="Remove the ports with a label, or one that begins with it and a colon, together",
        handler=_delete_labelled,
        status=204,
        errors=(403, 404),
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
        method="GET",
        path="/v1/config",
        name="getConfig",
        summary="What runs as a configuration file, which gives the same when it is read",
        handler=_get_config,
        returns=SavedConfig,
    ),
    Route(
        method="GET",
        path="/v1/events",
        name="watchEvents",
        summary="What happens, as server-sent events: each is one value. The answer has no end",
        handler=_watch,
        returns=EventStatus,
        errors=(409,),
        streams=True,
    ),
    Route(
        method="POST",
        path="/v1/trace",
        name="trace",
        summary="What would become of a frame, and why; nothing is sent, counted or changed",
        handler=_trace,
        takes=TraceAsked,
        returns=TraceStatus,
        errors=(400, 403, 404, 409),
    ),
    Route(
        method="POST",
        path="/v1/captures",
        name="capture",
        summary="Copy frames for a reader: their memory by SCM_RIGHTS, then what must be known of it. It has no end",
        handler=_capture,
        takes=CaptureAsked,
        returns=CaptureStatus,
        errors=(400, 403, 404, 409),
        streams=True,
    ),
    Route(
        method="POST",
        path="/v1/plan",
        name="planReload",
        summary="What a reload of the configuration file would do; nothing is changed",
        handler=_plan_reload,
        returns=Reloaded,
        errors=(403, 409),
    ),
    Route(
        method="POST",
        path="/v1/takeover",
        name="takeOver",
        summary="Leave ports, counters and state to another daemon, which reads a state of that version, and end",
        handler=_take_over,
        takes=TakeOver,
        status=204,
        errors=(400, 403, 409),
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
    400: "The body is not valid; the error names the place",
    403: "Not for this user: changes are for root and the daemon's own user, descriptors for allowed users too",
    404: "There is no such switch, port or label",
    409: "Refused; nothing was changed",
}
