"""The OpenAPI document: made from the table of operations, the model and the keys of the configuration."""

from __future__ import annotations

import json
from typing import Any, cast

import msgspec

from ipvsw import __version__
from ipvsw.daemon.api.bodies import Error
from ipvsw.daemon.api.operations import REASONS, ROUTES, STREAM

JSON = "application/json"
_PARAMETERS = {"name": "A switch, a port or a label. A slash in SWITCH/PORT is written %2F"}


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
            operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema_of[route.takes]}}}
        for status in (route.status, *route.errors):
            answer: dict[str, Any] = {"description": REASONS[status]}
            returns = route.returns if status == route.status else Error
            if returns is not None:
                kind = STREAM if route.streams and status == route.status else JSON
                answer["content"] = {kind: {"schema": schema_of[returns]}}
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
