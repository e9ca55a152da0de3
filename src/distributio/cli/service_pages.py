"""The pages of the reference about a site as a service: its settings, its API, its refusals."""

import ast
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from distributio.cli.markdown import MADE_BY, page, table
from distributio.lifecycle.reasons import REASONS
from distributio.server import app, openapi, problems
from distributio.server.routes import Route
from distributio.server.settings import DESCRIPTIONS, Settings
from distributio.wire.native import Problem

_OTHER_VARIABLES = {"data": "DISTRIBUTIO_DATA", "url": "DISTRIBUTIO_SITE_URL"}
_ACCESS = {
    "public": "Anybody",
    "person": "People, with `Authorization: Bearer TOKEN`",
    "operator": "Operators, with `Authorization: Bearer TOKEN`",
    "host": "Hosts, with `Authorization: Host ID:KEY`",
}


# --- settings ---------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting with its default, its variable and its sentence."""
    defaults = Settings()
    rows = [
        (f"`{name}`", _default(getattr(defaults, name)), f"`{_variable(name)}`", text)
        for name, text in DESCRIPTIONS.items()
    ]
    return page(
        [
            "# Settings of a site",
            MADE_BY,
            "A site reads `distributio.toml` in its data folder, then the environment, then the command line of"
            " `distributio serve`; the later wins. A name or value it does not know stops it from starting.",
            table(("setting", "default", "environment", "what it is"), rows),
            "Lists are written as in TOML, `[\"linux/amd64\"]`, and in the environment with commas between their parts."
            " Credentials of an S3 service come from `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.",
        ]
    )  # fmt: skip


def _variable(name: str) -> str:
    return _OTHER_VARIABLES.get(name, f"DISTRIBUTIO_{name.upper()}")


def _default(value: object) -> str:
    if value == "":
        return "empty"
    if isinstance(value, list):
        return f"`{json.dumps(value)}`"
    return f"`{value}`"


# --- refusals ---------------------------------------------------------------------------------------------------


def errors() -> str:
    """Every problem a site answers with: its code, its statuses, what it means and what to do."""
    statuses: dict[str, set[int]] = {}
    for status, code in _refusals():
        statuses.setdefault(code, set()).add(status)
    rows = [
        (f"`{code}`", ", ".join(map(str, sorted(statuses[code]))), text.sentence, text.advice)
        for code, text in REASONS.items()
        if code in statuses
    ]
    return page(
        [
            "# Errors of the API",
            MADE_BY,
            "A request that is refused is answered with a problem as RFC 9457 has it, of type"
            " `application/problem+json`. Its `code` is one of these and never changes; `title` and `advice` are the words"
            " below, `detail` says what it is about this time, `errors` lists every mistake where there are several."
            " With status 503 `Retry-After` says when to ask again.",
            table(("code", "status", "what it means", "what to do"), rows),
        ]
    )


def _refusals() -> Iterator[tuple[int, str]]:
    """Statuses with codes, as they stand side by side in the server's own text."""
    for file in sorted(Path(problems.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield from _side_by_side(node.args)
            if isinstance(node, ast.Tuple):
                yield from _side_by_side(node.elts)


def _side_by_side(nodes: list[ast.expr]) -> Iterator[tuple[int, str]]:
    values = [node.value if isinstance(node, ast.Constant) else None for node in nodes]
    for status, code in itertools.pairwise(values):
        if isinstance(status, int) and 400 <= status < 600 and isinstance(code, str) and code in REASONS:
            yield status, code


# --- the API ----------------------------------------------------------------------------------------------------


def api() -> str:
    """Every route of the native API, by who may use it, and every message."""
    routes = [route for route in app.ROUTES if openapi.is_described(route)]
    parts = [
        "# The native API",
        MADE_BY,
        "JSON over HTTP. A running site describes itself at `/api/v1/openapi.json`. Another project's things are not there:"
        " 404. What is refused is answered with a [problem](errors.md). A `POST` of a batch may carry an"
        " `Idempotency-Key`: the same key with the same request is answered with the batch it made first.",
        "Lists are pages: `{\"items\": [...], \"cursor\": \"...\"}`. Ask again with `?cursor=` for what follows, and with"
        " `?limit=` for at most so many; without a cursor that was all.",
        "Uploads go on where they stopped: `HEAD` answers 404 with `Upload-Offset` while part of the bytes is here. `PUT`"
        " sends the rest with `Upload-Offset`, and `Upload-Length` if that is not all: 202 says that more is expected, 201"
        " that the whole is here and is what its digest says, 409 with `Upload-Offset` where the site stands.",
    ]  # fmt: skip
    for access, title in _ACCESS.items():
        rows = [_row(route) for route in routes if route.access == access]
        if rows:
            parts += [f"## {title}", table(("request", "takes", "gives", "what it does"), rows)]
    parts += ["## Messages", "Sizes are in bytes, times in seconds, instants in seconds since 1970, UTC."]
    parts += _messages(routes)
    return page(parts)


def _row(route: Route) -> tuple[str, str, str, str]:
    words = "".join(f" `?{name}=`" for name in route.query)
    brings_bytes = route.takes is None and route.method in ("PUT", "POST") and route.streams
    takes = _link(route.takes) if route.takes else route.streams if brings_bytes else ""
    gives = _link(route.gives) if route.gives else "" if brings_bytes else route.streams
    return f"`{route.method} {route.path}`{words}", takes, f"{route.status} {gives}".strip(), route.summary


def _link(kind: Any) -> str:
    return f"[{kind.__name__}](#{kind.__name__.lower()})"


def _messages(routes: list[Route]) -> Iterator[str]:
    named = [kind for route in routes for kind in (route.takes, route.gives) if kind is not None]
    _, components = msgspec.json.schema_components([*named, Problem], ref_template="{name}")
    for name, schema in sorted(components.items()):
        required = set(schema.get("required", ()))
        rows = [
            (f"`{field}`", _type(about), "" if field in required else _given(about))
            for field, about in schema.get("properties", {}).items()
        ]
        text = " ".join(schema.get("description", "").split())
        yield f"### {name}"
        if text:
            yield text
        yield table(("field", "type", "if left out"), rows)


def _given(about: dict[str, Any]) -> str:
    return f"`{json.dumps(about['default'])}`" if "default" in about else ""


def _type(about: dict[str, Any]) -> str:
    if "$ref" in about:
        return f"[{about['$ref']}](#{about['$ref'].lower()})"
    if "anyOf" in about:
        return " or ".join(_type(each) for each in about["anyOf"])
    if about.get("type") == "array":
        return f"list of {_type(about['items'])}" if about.get("items") else "list"
    if about.get("type") == "object":
        inner = about.get("additionalProperties")
        return f"map to {_type(inner)}" if isinstance(inner, dict) and inner else "map"
    return " ".join([about.get("type", "anything"), *_bounds(about)])


def _bounds(about: dict[str, Any]) -> Iterator[str]:
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        if key in about:
            yield f"{sign} {about[key]}"
    if "pattern" in about:
        yield f"like `{about['pattern']}`"
    if "contentEncoding" in about:
        yield f"in {about['contentEncoding']}"
