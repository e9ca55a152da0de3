"""What a route is: a row of a table that says who may use it, what it takes and gives, and what answers it."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from distributio.server.problems import Refused, not_found
from distributio.server.site import Site
from distributio.store.accounts import Caller, KnownHost

MOST_PAGE = 1000
FAR = 10**17  # beyond every number the site gives
ROLES = ("reader", "member", "manager")


class Call:
    """One request, as a handler sees it: who asks, and what was sent."""

    def __init__(self, site: Site, request: Request, caller: Caller | None, host: KnownHost | None, body: Any) -> None:
        self.site = site
        self.request = request
        self._caller = caller
        self._host = host
        self.body = body

    @property
    def caller(self) -> Caller:
        """The person who asks. Only in routes for people."""
        assert self._caller is not None
        return self._caller

    @property
    def visitor(self) -> Caller | None:
        """The person who looks at a page, if he is signed in."""
        return self._caller

    @property
    def host(self) -> KnownHost:
        """The host that asks. Only in routes for hosts."""
        assert self._host is not None
        return self._host

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def number(self, name: str) -> int:
        """A number in the path; anything else is not found."""
        number = whole_number(self.path(name))
        if number is None:
            raise not_found(f"{name} {self.path(name)[:80]!r}")
        return number

    def query(self, name: str, default: str = "") -> str:
        """A query parameter."""
        return self.request.query_params.get(name, default)

    def count(self, name: str, default: int, most: int, least: int = 0) -> int:
        """A number among the query parameters."""
        text = self.query(name, str(default))
        number = whole_number(text)
        if number is None:
            raise Refused(422, "bad-request", f"{name}={text[:80]!r} is not a number")
        return max(least, min(most, number))

    def limit(self) -> int:
        """How many items a page may have."""
        return self.count("limit", 100, MOST_PAGE, 1)

    def project_id(self, role: str = "reader") -> int:
        """The project the request is about: `?project=`, the token's own, or the caller's only one. Raises Refused if there is
        none in which the caller has at least this role."""
        caller = self.caller
        name = self.query("project")
        if name:
            number = caller.projects.get(name)
            if number is None:
                raise not_found(f"project {name!r} of yours")
        elif caller.project_id is not None:
            number = caller.project_id
        elif len(caller.projects) == 1:
            number = next(iter(caller.projects.values()))
        else:
            names = ", ".join(sorted(caller.projects)) or "none"
            raise Refused(422, "which-project", f"your projects: {names}; add ?project=NAME, or --project NAME")
        self.require(number, role)
        return number

    def require(self, project_id: int, role: str, what: str = "project") -> None:
        """The caller has at least this role in a project; whoever has none is told that there is nothing."""
        if self.caller.is_operator:
            return
        held = self.caller.roles.get(project_id)
        if held is None:
            raise not_found(what)
        if ROLES.index(held) < ROLES.index(role):
            raise Refused(403, "role-too-small", f"this needs the role {role}; yours is {held}")

    def visible_projects(self) -> list[int] | None:
        """Projects whose things the caller may list: one if it is named, else all of theirs; None means every project."""
        if self.query("project"):
            return [self.project_id()]
        if self.caller.is_operator and self.query("all"):
            return None
        if self.caller.project_id is not None:
            self.require(self.caller.project_id, "reader")
            return [self.caller.project_id]
        return list(self.caller.projects.values())


def whole_number(text: str, digits: int = 18) -> int | None:
    """The number a text is, or None. Other alphabets' digits are none of ours."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else None


async def body_of(request: Request, most: int) -> bytes:
    """A request's body. Raises Refused as soon as it is longer than `most`."""
    parts = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise Refused(413, "too-large", f"a request may have {most} bytes")
        parts.append(chunk)
    return b"".join(parts)


Answer = Response | Struct
Handler = Callable[[Call], Awaitable[Answer]]


class Route(Struct, frozen=True, kw_only=True):
    """A row of the table of routes. `access` is "public", "person", "operator" or "host"; for pages in a browser "visitor"
    (signed in or not) or "session" (signed in). Roles in a project are checked where the project is known."""

    method: str
    path: str
    access: str
    handler: Handler
    summary: str
    takes: Any = None  # the body's type, if it is JSON
    gives: Any = None  # the answer's type, if it is JSON
    status: int = 200
    query: tuple[str, ...] = ()
    streams: str = ""  # what the body or the answer is, if it is not JSON


def json_response(value: Struct, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
