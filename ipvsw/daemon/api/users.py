"""What users may do who are not root, on the socket `daemon.users_socket`: attach network namespaces of their own.

A namespace is theirs if the kernel says so: they own its user namespace, as of a rootless runtime's containers. It
comes as a descriptor, for it may have no path that others see. A switch says who may (`users`). Such a port has all
guards, may claim no address but those that it was added with, and goes with its namespace. The host's own traffic goes
to none of them that is not on-link at the master: the user alone has chosen them. Its label begins with `user:UID:`, by
which its user alone finds and removes it.
"""

from __future__ import annotations

from ipaddress import IPv6Network, ip_network
from typing import Any

from msgspec import structs

from ipvsw.config.file import ConfigError, read_attach
from ipvsw.config.values import LABEL_MAX
from ipvsw.daemon.api.bodies import AddPort
from ipvsw.daemon.api.contract import Manager
from ipvsw.daemon.api.operations import BadBody, Call, Route, add_in_namespace, read_body
from ipvsw.linux.namespaces import owner_of
from ipvsw.model import Forbidden, Guard, PortConfig, label_of_user
from ipvsw.status import PortStatus, SwitchStatus

KEYS = frozenset(
    ("addresses", "gateway", "ifname", "label", "mac", "master", "metric", "mtu", "name", "persist", "routes")
)
LINK_LOCAL = IPv6Network("fe80::/10")


async def _add_port(manager: Manager, call: Call) -> PortStatus:
    if call.peer.is_master:
        return await add_in_namespace(manager, call, *read_body(call, read_attach))
    _check_namespace(call)
    master, port = read_body(call, lambda body: _read(body, _user(call)))
    manager.check_user(master, call.peer)
    return await add_in_namespace(manager, call, master, port, None, None)


def _read(body: object, user: int) -> tuple[str, PortConfig]:
    """Errors: ConfigError; Forbidden for what root alone may set."""
    for key in body if isinstance(body, dict) else ():
        if key not in KEYS:
            raise Forbidden(f"{key}: is root's to set; users may set {', '.join(sorted(KEYS))}")
    master, port, _, _ = read_attach(body)
    return master, of_user(port, user)


async def _list_labelled(manager: Manager, call: Call) -> tuple[SwitchStatus, ...]:
    return manager.labelled(label_of(call.name, call))


async def _delete_labelled(manager: Manager, call: Call) -> None:
    await manager.delete_labelled(label_of(call.name, call))


def _check_namespace(call: Call) -> None:
    """Errors: BadBody, Forbidden."""
    if not call.descriptors:
        raise BadBody("netns: must come as a descriptor on this socket")
    try:
        owner = owner_of(call.descriptors[0])
    except OSError as error:
        raise BadBody(f"the descriptor {error.strerror}") from None
    if owner != _user(call):
        raise Forbidden(f"the network namespace is user {owner}'s, and not this user's")


def of_user(port: PortConfig, user: int) -> PortConfig:
    """The port as it is added for a user. Errors: ConfigError."""
    label = f"{label_of_user(user)}:{port.label}" if port.label else label_of_user(user)
    if len(label) > LABEL_MAX:
        raise ConfigError(f"label: is longer than {LABEL_MAX} characters with the user before it")
    claim = (*(ip_network(one.ip) for one in port.addresses), LINK_LOCAL)
    return structs.replace(port, name=f"u{user}-{port.name}", label=label, guard=tuple(Guard), claim=claim)


def label_of(name: str, call: Call) -> str:
    """What a user calls the label `name`."""
    return name if call.peer.is_master else f"{label_of_user(_user(call))}:{name}"


def _user(call: Call) -> int:
    """Errors: Forbidden if the kernel doesn't say."""
    if call.peer.uid is None:
        raise Forbidden("the kernel does not say which user this is")
    return call.peer.uid


def _route(method: str, path: str, name: str, handler: Any, **more: Any) -> Route:
    return Route(method=method, path=path, name=name, summary="", handler=handler, **more)


ROUTES = (
    _route("POST", "/v1/ports", "addPort", _add_port, takes=AddPort, returns=PortStatus, status=201),
    _route("GET", "/v1/labels/{name}", "listLabelled", _list_labelled, returns=tuple[SwitchStatus, ...]),
    _route("DELETE", "/v1/labels/{name}", "deleteLabelled", _delete_labelled, status=204),
)
"""Of the other socket's operations those that users may have, by the same names."""
