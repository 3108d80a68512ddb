"""Routes of a port, written as ip-route(8) writes them."""

from __future__ import annotations

import ipaddress
import re

from ipvsw.config.values import ConfigError, integer, quoted, read_gateway, read_list, read_network, read_string
from ipvsw.model import Network, Route

METRIC_MAX = 0xFFFFFFFF
EVERYTHING = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}

read_metric = integer(1, METRIC_MAX)


def read_routes(value: object, place: str) -> tuple[Route, ...]:
    routes = read_list(value, place, _read_route)
    for index, route in enumerate(routes):
        if route in routes[:index]:
            raise ConfigError(f"{place}[{index}]: {route} stands twice")
    return routes


def _read_route(value: object, place: str) -> Route:
    text = read_string(value, place)
    found = re.fullmatch(r"(\S+)(?: via (\S+))?(?: metric ([0-9]{1,10}))?", text, re.ASCII)
    if found is None:
        raise ConfigError(f"{place}: {quoted(text)} is not DESTINATION [via GATEWAY] [metric N]")
    gateway = read_gateway(found[2], place) if found[2] else None
    if found[1] != "default":
        destination: Network = read_network(found[1], place)
    elif gateway is not None:
        destination = EVERYTHING[gateway.version]
    else:
        raise ConfigError(f"{place}: {quoted(text)} needs a gateway, whose family it is for")
    if gateway is not None and gateway.version != destination.version:
        raise ConfigError(f"{place}: {gateway} is no gateway for {destination}")
    metric = None if found[3] is None else read_metric(int(found[3]), place)
    return Route(destination=destination, gateway=gateway, metric=metric)
