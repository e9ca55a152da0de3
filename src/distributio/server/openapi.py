"""The native API's OpenAPI 3.1 document, made from the table of routes and the types of its messages."""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

import distributio
from distributio.server.routes import Route
from distributio.wire import native
from distributio.wire.native import Problem

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def is_described(route: Route) -> bool:
    """Whether a route belongs to the native API."""
    return route.path.startswith(("/api/", "/livez", "/readyz", "/metrics"))


@functools.lru_cache(maxsize=4)
def document(routes: Sequence[Route], url: str) -> bytes:
    """The document for a site at `url`."""
    named = [
        kind
        for kind in vars(native).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
    ]
    _, components = msgspec.json.schema_components(named, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if is_described(route):
            path = _PARAMETER.sub(r"{\1}", route.path)
            paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "Distribut.io native API", "version": distributio.__version__},
            "servers": [{"url": url}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "person": {"type": "http", "scheme": "bearer"},
                    "host": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Host ID:KEY"},
                },
            },
        },
        indent=1,
    ).encode()


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{re.sub(r'[^a-z]+', '_', route.path.removeprefix('/api/v1/')).strip('_')}",
        "summary": route.summary,
        "responses": {
            str(route.status): _content(
                route.gives, route.streams or "no body", route.gives is None and route.takes is None
            ),
            "default": {
                "description": "A problem",
                "content": {"application/problem+json": {"schema": _reference(Problem)}},
            },
        },
    }
    if route.access != "public":
        operation["security"] = [{"host" if route.access == "host" else "person": []}]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.takes is not None:
        operation["requestBody"] = {"required": True, **_content(route.takes, "", False)}
    elif route.method == "PUT" or (route.method == "POST" and route.streams):
        operation["requestBody"] = {
            "description": route.streams,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    return operation


def _content(kind: Any, description: str, is_plain: bool) -> dict[str, Any]:
    if kind is None or is_plain:
        return {"description": description}
    return {"description": kind.__doc__ or "", "content": {"application/json": {"schema": _reference(kind)}}}


def _reference(kind: Any) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
