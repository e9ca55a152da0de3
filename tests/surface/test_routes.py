"""Every route says who may use it and what it does, and the site's description of itself is a proper one."""

import inspect
import json
from collections import Counter
from typing import Any

import jsonschema
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from distributio.server import openapi
from distributio.server.app import ROUTES
from distributio.server.pages import sessions
from distributio.server.routes import Route

ACCESS = {"public", "person", "operator", "host", *sessions.ACCESS}
PUBLIC_BELOW_API = {"/api/v1/leaderboard", "/api/v1/openapi.json", "/api/v1/site-key", "/api/v1/status"}


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads(openapi.document(ROUTES, "http://127.0.0.1:8900"))


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_a_route_says_who_may_use_it_and_what_it_does(route: Route) -> None:
    assert route.access in ACCESS
    assert route.summary.endswith(".")
    assert inspect.iscoroutinefunction(route.handler)
    assert inspect.getdoc(route.handler), "its handler has no docstring"
    assert route.method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    assert route.takes is None or route.method in ("POST", "PUT", "PATCH")
    assert 200 <= route.status < 400


def test_no_two_routes_are_the_same() -> None:
    assert [name for name, count in Counter(map(name_of, ROUTES)).items() if count > 1] == []


def test_little_of_the_api_is_public() -> None:
    public = {route.path for route in ROUTES if route.access == "public" and route.path.startswith("/api/")}
    assert public == PUBLIC_BELOW_API
    assert all(route.access == "host" for route in ROUTES if route.path.startswith("/api/v1/host/"))


def test_pages_and_the_api_ask_for_different_credentials() -> None:
    for route in ROUTES:
        if route.path.startswith("/api/"):
            assert route.access not in sessions.ACCESS, f"{name_of(route)} would believe a cookie"


def test_the_description_is_a_proper_one(document: Any) -> None:
    OpenAPIV31SpecValidator(document).validate()
    described = {f"{method.upper()} {path}" for path, row in document["paths"].items() for method in row}
    assert described == {name_of(route) for route in ROUTES if openapi.is_described(route)}
    names = [operation["operationId"] for row in document["paths"].values() for operation in row.values()]
    assert len(names) == len(set(names))
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_description_says_who_may_do_what(document: Any) -> None:
    for route in ROUTES:
        if openapi.is_described(route):
            operation = document["paths"][route.path][route.method.lower()]
            wanted = {"public": None, "host": [{"host": []}]}.get(route.access, [{"person": []}])
            assert operation.get("security") == wanted
            assert ("requestBody" in operation) == (route.takes is not None or bool(_brings_bytes(route)))


def _brings_bytes(route: Route) -> bool:
    return route.method == "PUT" or (route.method == "POST" and bool(route.streams))


def test_every_message_is_described(document: Any) -> None:
    schemas = document["components"]["schemas"]
    for route in ROUTES:
        for kind in (route.takes, route.gives):
            if kind is not None and openapi.is_described(route):
                assert kind.__name__ in schemas
                assert msgspec.inspect.type_info(kind)
                assert schemas[kind.__name__].get("description"), kind
