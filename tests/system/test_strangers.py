"""Whatever strangers and clumsy programs send to a real server, it answers with something other than a mistake of its own."""

import json
import socket
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sites import API, Guest, GuestHost, RunningSite

pytestmark = pytest.mark.system

FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TEXT = st.text(max_size=30) | st.sampled_from(["", "1", "0", "-1", "²", "\0", "1.1", "9" * 40, "a/../b", "%00", "fake"])
NUMBER = (
    st.integers(-5, 50)
    | st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 2**64])
    | st.floats(allow_nan=False, allow_infinity=False)
)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


class Api:
    """A site's own description of itself, and requests made from it."""

    def __repr__(self) -> str:
        return "the API"

    def __init__(self, document: dict[str, Any]) -> None:
        self.schemas = document["components"]["schemas"]
        # What waits for long or ends the caller's own access is left out.
        self.operations = [
            (method.upper(), path, operation)
            for path, row in document["paths"].items()
            for method, operation in row.items()
            if not path.endswith(("/detach", "/events")) and not (method == "delete" and "/images/" not in path)
        ]

    def value(self, schema: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
        """Values that mostly fit a schema."""
        fitting = self._fitting(schema, depth)
        return fitting if depth > 5 else st.one_of(*[fitting] * 12, JUNK)

    def _fitting(self, schema: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            return self.value(self.schemas[schema["$ref"].rpartition("/")[2]], depth + 1)
        if "anyOf" in schema:
            return st.one_of([self.value(each, depth + 1) for each in schema["anyOf"]])
        kind = schema.get("type")
        if kind == "object" and "properties" in schema:
            fields = {name: self.value(about, depth + 1) for name, about in schema["properties"].items()}
            required = {name: fields[name] for name in schema.get("required", ())}
            optional = {name: value for name, value in fields.items() if name not in required}
            return st.fixed_dictionaries(required, optional=optional)
        if kind == "object":
            inner = schema.get("additionalProperties")
            return st.dictionaries(TEXT, self.value(inner, depth + 1) if isinstance(inner, dict) else JUNK, max_size=3)
        if kind == "array":
            return st.lists(self.value(schema.get("items") or {}, depth + 1), max_size=3)
        if kind == "integer":
            least = schema.get("minimum", -3)
            return st.integers(least, min(schema.get("maximum", least + 40), least + 40))
        return {"number": NUMBER, "string": TEXT, "boolean": st.booleans(), "null": st.none()}.get(str(kind), JUNK)


@pytest.fixture(scope="module")
def api(shared_site: RunningSite) -> Api:
    return Api(shared_site.guest().get("/openapi.json"))


@pytest.fixture(scope="module")
def somebody(shared_site: RunningSite) -> Guest:
    guest = shared_site.operator()
    guest.submit(3)
    return guest


@pytest.fixture(scope="module")
def machine(somebody: Guest) -> GuestHost:
    host = somebody.attach()
    host.turn(want=2)
    return host


def sane(text: str) -> str:
    """A part of a path that an HTTP client will send."""
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass")) or "%20"


NAMES = {
    "batch": "1",
    "job": "1.1",
    "task": "1",
    "host": "h0",
    "token": "99",
    "image": "1",
    "digest": "sha256:" + "0" * 64,
}


@settings(FUZZ, max_examples=400)
@given(data=st.data())
def test_no_request_is_the_sites_own_mistake(
    shared_site: RunningSite, api: Api, somebody: Guest, machine: GuestHost, data: st.DataObject
) -> None:
    method, path, operation = api.operations[data.draw(st.integers(0, len(api.operations) - 1))]
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            known = NAMES.get(parameter["name"], "default")
            word = data.draw(st.one_of(st.just(known), st.just(known), TEXT))
            path = path.replace(f"{{{parameter['name']}}}", sane(word))
    names = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
    query = data.draw(st.dictionaries(st.sampled_from(names), TEXT, max_size=3)) if names else {}
    query.pop("follow", None)
    body = operation.get("requestBody", {}).get("content", {})
    more: dict[str, Any] = {}
    if "application/json" in body:
        said = data.draw(api.value(body["application/json"]["schema"]))
        if isinstance(said, dict) and path.endswith("/turn"):
            said["wait_seconds"] = 0.0
        more["content"] = json.dumps(said).encode()
    elif body:
        more["content"] = data.draw(st.binary(max_size=200))
        more["headers"] = {
            "Upload-Offset": str(data.draw(st.integers(0, 2))),
            "Digest": data.draw(st.sampled_from(["", NAMES["digest"], "x"])),
        }
    who = machine.http if "host" in str(operation.get("security")) else somebody.http
    answer = who.request(method, path, params=query, **more)
    assert answer.status_code < 500 or answer.json()["code"] == "image-unreachable", (
        f"{answer.text}\n{shared_site.log()}"
    )
    if answer.status_code >= 400 and method != "HEAD":
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"]


@settings(FUZZ, max_examples=60)
@given(
    data=st.binary(max_size=300),
    start=st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"POST /api/v1/batches HTTP/1.1\r\n"]),
)
def test_no_bytes_end_it(shared_site: RunningSite, data: bytes, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", shared_site.port), timeout=10) as sock:
        sock.sendall(start + data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65_536):
            pass


def test_it_is_well_afterwards(shared_site: RunningSite, somebody: Guest) -> None:
    assert shared_site.guest().ask("GET", "/readyz").status_code == 200
    assert "request failed" not in shared_site.log()
    assert "Traceback" not in shared_site.log()
    assert somebody.get("/whoami")["user"] == "operator"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer " + "x" * 8000},
        {"Authorization": "Basic " + "////" * 100},
        {"Cookie": "session=" + "x" * 4000},
        {"Content-Encoding": "gzip"},
        {"X-Forwarded-For": "'; DROP TABLE users"},
        {"Range": "bytes=9-1,-5"},
        {"Idempotency-Key": "k" * 4000},
    ],
)
def test_strange_headers_do_no_harm(shared_site: RunningSite, headers: dict[str, str]) -> None:
    stranger = shared_site.guest()
    for path in ("/", "/livez", f"{API}/status", f"{API}/whoami", "/v2/", "/v2/a/blobs/sha256:x"):
        assert stranger.http.get(path, headers=headers).status_code < 500


def test_slow_and_half_requests_hold_nobody_up(shared_site: RunningSite) -> None:
    socks = [socket.create_connection(("127.0.0.1", shared_site.port)) for _ in range(100)]
    try:
        for sock in socks:
            sock.sendall(b"POST /api/v1/batches HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert httpx2.get(f"{shared_site.url}/livez", timeout=5).status_code == 200
    finally:
        for sock in socks:
            sock.close()
