"""The native API of a real server: who may do what, what is answered to mistakes, and that nothing a stranger sends breaks it."""

import concurrent.futures
import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import msgspec
import pytest

from distributio.server.app import ROUTES
from distributio.server.routes import Route
from distributio.store import accounts, catalog
from distributio.wire import oci
from distributio.wire.native import (
    BatchSubmission,
    Input,
    JobChoice,
    Limits,
    PolicyChoice,
    Spec,
    TaskReport,
    Turn,
    WorkRequest,
)
from scripted_site import layer
from sites import API, Guest, GuestHost, RunningSite, digest_of, results_tar, success, wait_for

pytestmark = pytest.mark.system

ONES = {
    "batch": "1",
    "job": "1.1",
    "token": "1",
    "image": "1",
    "host": "h1",
    "task": "1",
    "digest": "sha256:" + "a" * 64,
}
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def ada(shared_site: RunningSite) -> Guest:
    """A member of the project pulsar."""
    return shared_site.member("ada", "pulsar")


@pytest.fixture(scope="module")
def bob(shared_site: RunningSite) -> Guest:
    """A member of another project."""
    return shared_site.member("bob", "folding")


@pytest.fixture(scope="module")
def rita(shared_site: RunningSite, ada: Guest) -> Guest:
    """A reader of the project pulsar."""
    return shared_site.member("rita", "pulsar", "reader")


@pytest.fixture(scope="module")
def stranger(shared_site: RunningSite) -> Guest:
    return shared_site.guest()


@pytest.fixture(autouse=True)
def nothing_left_behind(shared_site: RunningSite) -> Iterator[None]:
    """No job of one test is in the way of another's."""
    yield
    operator = shared_site.operator()
    for batch in operator.get("/batches?state=active&all=1")["items"]:
        operator.ask("POST", f"{API}/batches/{batch['id']}/cancel")


@pytest.fixture
def host(ada: Guest) -> Iterator[GuestHost]:
    """A host of ada's that goes when the test ends."""
    attached = ada.attach()
    yield attached
    ada.http.request("DELETE", f"{API}/hosts/{attached.id}")


def native_routes() -> list[Route]:
    return [route for route in ROUTES if route.path.startswith(API)]


def filled(path: str) -> str:
    for name, value in ONES.items():
        path = path.replace(f"{{{name}}}", value)
    return path.replace("{", "").replace("}", "")


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == PROBLEM
    said: dict[str, Any] = answer.json()
    assert said["code"] == code, said
    assert said["status"] == status
    assert said["title"]
    assert said["advice"]
    return said


# --- who may do what --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", native_routes(), ids=lambda route: f"{route.method} {route.path}")
def test_without_credentials_only_the_public_is_served(
    stranger: Guest, host: GuestHost, ada: Guest, route: Route
) -> None:
    path = filled(route.path)
    wrong = {"Authorization": "Bearer dio_wrong"} if route.access != "host" else {"Authorization": "Host h1:wrong"}
    for headers in ({}, wrong, {"Authorization": "Basic !!!"}, {"Authorization": "Host"}, {"Authorization": "Bearer"}):
        answer = stranger.http.request(route.method, path, headers=headers)
        assert (answer.status_code == 401) is (route.access != "public"), f"{headers} {answer.status_code}"
        if answer.status_code == 401 and route.method != "HEAD":
            problem(answer, 401, "bad-host-key" if route.access == "host" else "bad-token")
    # A host's key is nobody's token, and a token no host's key.
    if route.access == "host":
        assert ada.http.request(route.method, path).status_code == 401
    elif route.access != "public":
        assert host.http.request(route.method, path).status_code == 401


def test_other_projects_things_are_not_there(ada: Guest, bob: Guest, rita: Guest) -> None:
    batch = ada.submit(1)
    for method, path in (
        ("GET", f"/batches/{batch}"),
        ("POST", f"/batches/{batch}/cancel"),
        ("POST", f"/batches/{batch}/rerun"),
        ("GET", f"/batches/{batch}/jobs"),
        ("GET", f"/batches/{batch}/events"),
        ("GET", f"/jobs/{batch}.1"),
        ("POST", f"/jobs/{batch}.1/cancel"),
        ("GET", f"/jobs/{batch}.1/explain"),
        ("GET", f"/jobs/{batch}.1/log"),
        ("GET", f"/jobs/{batch}.1/log?follow=1"),
        ("GET", f"/jobs/{batch}.1/results.tar"),
        ("GET", f"/jobs/{batch}.1/result.json"),
        ("GET", "/quota?project=pulsar"),
        ("GET", "/batches?project=pulsar"),
    ):
        problem(bob.http.request(method, f"{API}{path}"), 404, "not-found")
    assert batch not in {item["id"] for item in bob.get("/batches?all=1")["items"]}
    assert rita.get(f"/batches/{batch}")["id"] == batch
    for path in (f"/batches/{batch}/cancel", f"/jobs/{batch}.1/cancel", f"/batches/{batch}/rerun"):
        problem(rita.http.post(f"{API}{path}"), 403, "role-too-small")
    refused = rita.http.post(f"{API}/batches", content=msgspec.json.encode(BatchSubmission(spec=Spec(runner="fake"))))
    problem(refused, 403, "role-too-small")
    assert rita.http.put(f"{API}/files/{digest_of(b'x')}", content=b"x").status_code == 403


def test_the_operator_sees_everything(shared_site: RunningSite, ada: Guest) -> None:
    operator = shared_site.operator()
    batch = ada.submit(1)
    assert operator.batch(batch).project == "pulsar"
    assert batch in {item["id"] for item in operator.get("/batches?all=1")["items"]}
    assert operator.get("/whoami")["is_operator"]


def test_who_left_a_project_sees_nothing_of_it(shared_site: RunningSite) -> None:
    guest = shared_site.member("leaver", "pulsar")
    batch = guest.submit(1)
    token = guest.ask("POST", f"{API}/tokens?name=second", 201).json()["secret"]

    def leave(transaction: Any) -> None:
        caller = accounts.caller_by_token(transaction, token)
        assert caller is not None
        accounts.remove_member(transaction, caller.user_id, caller.projects["pulsar"])

    shared_site.look(leave)
    late = shared_site.guest(token)
    for path in ("/batches", "/jobs", f"/batches/{batch}", "/quota", "/images"):
        problem(late.http.get(f"{API}{path}"), 404, "not-found")


def test_a_revoked_token_is_worthless_at_once(shared_site: RunningSite, ada: Guest) -> None:
    made = ada.ask("POST", f"{API}/tokens?name=laptop", 201).json()
    guest = shared_site.guest(made["secret"])
    assert guest.get("/whoami")["user"] == "ada"
    assert made["id"] in {token["id"] for token in ada.get("/tokens")["items"]}
    assert made["secret"] not in ada.http.get(f"{API}/tokens").text
    ada.ask("DELETE", f"{API}/tokens/{made['id']}", 204)
    problem(guest.http.get(f"{API}/whoami"), 401, "bad-token")
    problem(ada.http.delete(f"{API}/tokens/{made['id']}"), 404, "not-found")


def test_a_token_revoked_beside_the_server_is_worthless_in_seconds(shared_site: RunningSite, ada: Guest) -> None:
    made = ada.ask("POST", f"{API}/tokens", 201).json()
    guest = shared_site.guest(made["secret"])
    guest.get("/whoami")
    shared_site.look(lambda transaction: transaction.run("DELETE FROM tokens WHERE id = :id", id=made["id"]))
    wait_for(lambda: guest.http.get(f"{API}/whoami").status_code == 401, "the end of the token", 8)


def test_an_expired_token_is_no_token(shared_site: RunningSite, ada: Guest) -> None:
    made = ada.ask("POST", f"{API}/tokens", 201).json()

    def expire(transaction: Any) -> None:
        transaction.run("UPDATE tokens SET expires_at = 1 WHERE id = :id", id=made["id"])

    shared_site.look(expire)
    problem(shared_site.guest(made["secret"]).http.get(f"{API}/whoami"), 401, "bad-token")


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        (b"", 400, ""),
        (b"{", 400, ""),
        (b"\xff\xfe", 400, ""),
        (b"[]", 422, "object"),
        (b"{}", 422, "spec"),
        (b'{"spec": {"runner": 5}}', 422, "$.spec.runner"),
        (b'{"spec": {"runner": "fake"}, "count": 0}', 422, "$.count"),
        (b'{"spec": {"runner": "fake"}, "count": 1e99}', 422, "$.count"),
        (b'{"spec": {"runner": "fake"}, "jobs": []}', 422, "jobs"),
        (b'{"spec": {"runner": "fake"}, "count": 999999}', 422, "jobs"),
        (b'{"spec": {"runner": "magic"}}', 422, "spec.runner"),
        (b'{"spec": {"runner": "container"}}', 422, "spec.image"),
        (b'{"spec": {"runner": "container", "image": "UPPER/Case::"}}', 422, ""),
        (b'{"spec": {"runner": "fake", "workdir": "../x"}}', 422, "spec.workdir"),
        (b'{"spec": {"runner": "fake", "environment": {"A=B": "x"}}}', 422, "spec.environment"),
        (b'{"spec": {"runner": "fake", "environment": {"A": "x\\u0000"}}}', 422, "spec.environment"),
        (b'{"spec": {"runner": "fake", "command": ["\\u0000"]}}', 422, "spec.command"),
        (b'{"spec": {"runner": "fake"}, "jobs": [{"variables": {"a=": "1"}}]}', 422, "jobs[1].variables"),
        (b'{"spec": {"runner": "fake"}, "policy": {"validator": "magic"}}', 422, "policy.validator"),
        (b'{"spec": {"runner": "fake"}, "policy": {"quorum": 3, "max_successes": 1}}', 422, "policy"),
        (b'{"spec": {"runner": "fake", "limits": {"memory_bytes": 1}}}', 422, "$.spec.limits.memory_bytes"),
        (b'{"spec": {"runner": "fake"}, "priority": 5000}', 422, "$.priority"),
        (b'{"spec": {"runner": "fake"}, "priority": "\\ud800"}', 400, ""),
    ],
)
def test_a_broken_submission_is_told_what_is_wrong(ada: Guest, body: bytes, status: int, names: str) -> None:
    said = problem(
        ada.http.post(f"{API}/batches", content=body),
        status,
        json.loads(ada.http.post(f"{API}/batches", content=body).content)["code"],
    )
    assert names in said["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PATCH", "/batches", 405, "method-not-allowed"),
        ("DELETE", "/batches/1", 405, "method-not-allowed"),
        ("GET", "/host/turn", 405, "method-not-allowed"),
        ("POST", "/files/sha256:x", 405, "method-not-allowed"),
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/batches/x", 404, "not-found"),
        ("GET", "/batches/²", 404, "not-found"),
        ("GET", "/batches/٣", 404, "not-found"),
        ("GET", f"/batches/{'9' * 30}", 404, "not-found"),
        ("GET", "/batches/-1", 404, "not-found"),
        ("GET", "/jobs/1", 404, "not-found"),
        ("GET", "/jobs/²7.1", 404, "not-found"),
        ("GET", "/jobs/1.99999999999999999999", 404, "not-found"),
        ("GET", "/jobs?cursor=²7.1", 422, "bad-request"),
        ("GET", f"/jobs?cursor={'9' * 5000}.1", 422, "bad-request"),
        ("GET", f"/jobs?cursor={'9' * 25}.1", 422, "bad-request"),
        ("GET", "/jobs?state=sleeping", 422, "bad-request"),
        ("GET", "/batches?state=sleeping", 422, "bad-request"),
        ("GET", "/batches?limit=x", 422, "bad-request"),
        ("GET", "/batches?cursor=²", 422, "bad-request"),
        ("GET", "/batches?project=nobody", 404, "not-found"),
        ("GET", "/batches?project=%00", 404, "not-found"),
        ("GET", "/images?cursor=x", 422, "bad-request"),
        ("DELETE", "/images/1", 404, "not-found"),
        ("GET", "/hosts/%00", 404, "not-found"),
        ("GET", "/hosts/h'; DROP TABLE hosts", 404, "not-found"),
        ("HEAD", "/files/sha256:..%2F..%2Fetc", 404, ""),
        ("PUT", "/files/..%2F..%2Fetc%2Fpasswd", 404, "not-found"),
        ("PUT", f"/files/sha256:{'A' * 64}", 422, "bad-request"),
        ("PUT", f"/files/sha512:{'a' * 64}", 422, "bad-request"),
        ("PUT", "/files/sha256:../../../x", 404, "not-found"),
        ("DELETE", "/tokens/0", 404, "not-found"),
    ],
)
def test_wrong_addresses_and_words_are_refused(ada: Guest, method: str, path: str, status: int, code: str) -> None:
    answer = ada.http.request(method, f"{API}{path}")
    assert answer.status_code == status, answer.text
    if method != "HEAD":
        problem(answer, status, code)


def test_bodies_that_are_too_large_are_cut_off(ada: Guest, host: GuestHost) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(70):
            yield b"[" * (1 << 20)

    problem(ada.http.post(f"{API}/batches", content=endless()), 413, "too-large")
    problem(host.http.post(f"{API}/host/turn", content=endless()), 413, "too-large")
    ada.submit(1)
    task = host.turn(want=1).assignments[0].task
    problem(host.http.post(f"{API}/host/tasks/{task}/log", content=endless()), 413, "too-large")
    facts = msgspec.json.encode({"facts": {"name": "x" * 100_000}})
    problem(ada.http.post(f"{API}/hosts", content=facts), 413, "too-large")


def test_text_no_database_can_hold_is_refused_in_words(either_site: RunningSite) -> None:
    guest = either_site.operator()
    named = BatchSubmission(spec=Spec(runner="fake"), name="nul\0name")
    answers = [
        guest.http.post(f"{API}/batches", content=msgspec.json.encode(named)),
        guest.http.post(f"{API}/tokens?name=%00"),
        guest.http.post(f"{API}/hosts", content=msgspec.json.encode({"facts": {"name": "\0"}})),
        guest.http.get(f"{API}/hosts/%00"),
        guest.http.get(f"{API}/batches?project=%00"),
    ]
    assert [answer.status_code for answer in answers if answer.status_code >= 500] == []
    host = guest.attach()
    guest.submit(1)
    task = host.turn(want=1).assignments[0].task
    report = TaskReport(
        task=task, outcome="failed", exit_code=2**40, cause="c\0d", detail="\0", log=b"\0\xff", log_offset=-7,
        memory_bytes=2**63, output_bytes=2**63, wall_seconds=1e300,
    )  # fmt: skip
    answer = host.say(Turn(reports=[report, TaskReport(task=2**63, outcome="success", log_offset=2**63)]))
    assert answer.acknowledged == [task, 2**63]


# --- lists ------------------------------------------------------------------------------------------------------


def pages_of(guest: Guest, path: str, limit: int, between: Callable[[], object]) -> list[str]:
    """What a list has, page by page, while other things happen."""
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = guest.get(path, params={"limit": limit, **cursor})
        assert len(page["items"]) <= limit
        seen += [str(item["id"]) for item in page["items"]]
        if page["cursor"] is None:
            return seen
        cursor = {"cursor": page["cursor"]}
        between()


@pytest.mark.parametrize("limit", [1, 2, 4, 1000])
def test_lists_are_whole_and_stable_while_things_are_added(shared_site: RunningSite, limit: int) -> None:
    guest = shared_site.member(f"lister{limit}", f"lists{limit}")
    batches = [guest.submit(3) for _ in range(5)]
    first = batches[0]
    in_batch = [f"{first}.{position}" for position in (1, 2, 3)]
    jobs = [f"{batch}.{position}" for batch in reversed(batches) for position in (3, 2, 1)]
    assert pages_of(guest, "/batches", limit, lambda: None) == [str(batch) for batch in reversed(batches)]
    assert pages_of(guest, "/jobs", limit, lambda: guest.submit(1)) == jobs
    assert pages_of(guest, f"/batches/{first}/jobs", limit, lambda: guest.submit(1)) == in_batch


def test_lists_are_narrowed_by_state(shared_site: RunningSite) -> None:
    guest = shared_site.member("narrow", "narrow")
    open_batch, over = guest.submit(2), guest.submit(1)
    guest.ask("POST", f"{API}/batches/{over}/cancel")
    assert [item["id"] for item in guest.get("/batches?state=active")["items"]] == [open_batch]
    assert [item["id"] for item in guest.get("/batches?state=ended")["items"]] == [over]
    assert [item["id"] for item in guest.get("/jobs?state=cancelled")["items"]] == [f"{over}.1"]
    assert len(guest.get("/jobs?state=waiting,running")["items"]) == 2
    assert guest.get(f"/batches/{open_batch}/jobs?state=done")["items"] == []


# --- submitting -------------------------------------------------------------------------------------------------


def test_the_same_key_submits_once(ada: Guest) -> None:
    body = msgspec.json.encode(BatchSubmission(spec=Spec(runner="fake", command=["x"])))
    key = {"Idempotency-Key": "k-1"}
    first = ada.ask("POST", f"{API}/batches", 201, content=body, headers=key).json()["id"]
    assert ada.ask("POST", f"{API}/batches", 201, content=body, headers=key).json()["id"] == first
    other = msgspec.json.encode(BatchSubmission(spec=Spec(runner="fake", command=["y"])))
    problem(ada.http.post(f"{API}/batches", content=other, headers=key), 422, "idempotency-conflict")


def test_quotas_are_told(shared_site: RunningSite) -> None:
    guest = shared_site.member("quentin", "small")

    def limit(transaction: Any) -> None:
        row = transaction.one("SELECT id FROM projects WHERE name = 'small'")
        accounts.set_limit(transaction, row[0], "jobs_in_flight", 3)
        accounts.set_limit(transaction, row[0], "storage_bytes", 100)

    shared_site.look(limit)
    guest.submit(2)
    refused = guest.http.post(
        f"{API}/batches", content=msgspec.json.encode(BatchSubmission(spec=Spec(runner="fake"), count=2))
    )
    assert "3" in problem(refused, 403, "quota-exceeded")["detail"]
    data = b"x" * 101
    problem(guest.http.put(f"{API}/files/{digest_of(data)}", content=data), 403, "quota-exceeded")
    view = guest.get("/quota")
    assert view["limits"] == {"jobs_in_flight": 3, "storage_bytes": 100}
    assert view["usage"]["jobs_in_flight"] == 2


def test_inputs_must_be_there(ada: Guest) -> None:
    data = b"input"
    spec = Spec(runner="fake", inputs=[Input(path="/data/a", digest=digest_of(data), size_bytes=len(data))])
    body = msgspec.json.encode(BatchSubmission(spec=spec))
    said = problem(ada.http.post(f"{API}/batches", content=body), 422, "missing-input")
    assert said["errors"] == [f"/data/a: {digest_of(data)}"]
    ada.ask("PUT", f"{API}/files/{digest_of(data)}", 201, content=data)
    ada.ask("POST", f"{API}/batches", 201, content=body)


def test_a_hundred_thousand_jobs_are_one_submission(site: RunningSite) -> None:
    guest = site.operator()
    batch = guest.submit(100_000)
    assert guest.batch(batch).counts["waiting"] == 100_000
    host = guest.attach()
    assert host.turn(want=1000).assignments
    ended = guest.ask("POST", f"{API}/batches/{batch}/cancel", timeout=60).json()
    assert ended["counts"]["cancelled"] == 100_000
    assert ended["state"] == "ended"


def test_a_rerun_has_the_same_jobs_policy_and_limits(ada: Guest, host: GuestHost) -> None:
    spec = Spec(runner="fake", command=["run", "{a}", "{b}"], limits=Limits(wall_seconds=366 * 86_400.0))
    choices = [
        JobChoice(variables={"a": "{b}", "b": "{a}"}, name="first"),
        JobChoice(variables={"a": "1", "b": "{a}{a}"}),
        JobChoice(command=["other", "{x}"]),
    ]
    batch = ada.submit(spec=spec, jobs=choices, policy=PolicyChoice(max_failures=0, quorum=2), labels={"x": "y"})
    assert ada.http.post(f"{API}/batches/{batch}/rerun").json()["code"] == "nothing-to-rerun"
    ada.ask("POST", f"{API}/batches/{batch}/cancel")
    again = ada.ask("POST", f"{API}/batches/{batch}/rerun", 201).json()
    first = ada.get(f"/batches/{batch}/jobs")["items"]
    second = ada.get(f"/batches/{again['id']}/jobs")["items"]
    for field in ("command", "variables", "name"):
        assert [job[field] for job in second] == [job[field] for job in first]
    assert [job["command"] for job in second] == [["run", "{b}", "{a}"], ["run", "1", "{a}{a}"], ["other", "{x}"]]
    assert again["policy"] == ada.get(f"/batches/{batch}")["policy"]
    assert again["labels"] == {"x": "y", "rerun-of": str(batch)}
    third = ada.ask("POST", f"{API}/batches/{again['id']}/cancel").json()
    assert third["counts"]["cancelled"] == 3


def test_an_image_goes_only_when_no_job_needs_it(shared_site: RunningSite, ada: Guest) -> None:
    def add(transaction: Any) -> int:
        row = transaction.one("SELECT id FROM projects WHERE name = 'pulsar'")
        digest = "sha256:" + "1" * 64
        name = "docker.io/library/tiny:latest"
        return catalog.add_image(transaction, row[0], name, digest, {"linux/amd64": digest}, [(digest, 5)], 1.0).id

    image = shared_site.look(add)
    batch = ada.submit(spec=Spec(image="tiny", command=["x"]))
    said = problem(ada.http.delete(f"{API}/images/{image}"), 409, "image-in-use")
    assert said["detail"].startswith("1 job")
    ada.ask("POST", f"{API}/batches/{batch}/cancel")
    ada.ask("DELETE", f"{API}/images/{image}", 204)
    assert ada.batch(batch).state == "ended"
    assert image not in {item["id"] for item in ada.get("/images")["items"]}
    problem(ada.http.delete(f"{API}/images/{image}"), 404, "not-found")


# --- files ------------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_stopped(ada: Guest) -> None:
    data = hashlib.sha256(b"seed").digest() * 50_000
    path = f"{API}/files/{digest_of(data)}"
    length = {"Upload-Length": str(len(data))}

    def offset() -> int:
        return int(ada.http.head(path).headers["Upload-Offset"])

    assert offset() == 0
    answer = ada.ask("PUT", path, 202, content=data[:1_000_000], headers=length)
    assert int(answer.headers["Upload-Offset"]) == offset() == 1_000_000
    for wrong in (0, 999_999, 1_000_001):
        answer = ada.http.put(path, content=data[wrong:], headers={**length, "Upload-Offset": str(wrong)})
        problem(answer, 409, "wrong-offset")
        assert int(answer.headers["Upload-Offset"]) == 1_000_000
    more = {**length, "Upload-Offset": "1000000"}
    problem(ada.http.put(path, content=data, headers=more), 422, "too-large")
    held = offset()
    ada.ask("PUT", path, 201, content=data[held:], headers={**length, "Upload-Offset": str(held)})
    answer = ada.ask("HEAD", path)
    assert int(answer.headers["Content-Length"]) == len(data)


@pytest.mark.parametrize("value", ["x", "-1", "²", "9" * 30, "1.5"])
def test_upload_headers_must_be_numbers(ada: Guest, value: str) -> None:
    path = f"{API}/files/{digest_of(value.encode())}"
    for name in ("Upload-Offset", "Upload-Length"):
        answer = ada.http.put(path, content=b"x", headers={name.encode(): value.encode("latin-1")})
        problem(answer, 422, "bad-request")


def test_bytes_that_are_not_what_they_are_called_are_dropped(ada: Guest) -> None:
    path = f"{API}/files/{digest_of(b'right')}"
    problem(ada.http.put(path, content=b"wrong"), 422, "digest-mismatch")
    assert ada.http.head(path).headers["Upload-Offset"] == "0"
    ada.ask("PUT", path, 201, content=b"right")
    ada.ask("PUT", path, 201, content=b"right")
    ada.ask("PUT", f"{API}/files/{digest_of(b'')}", 201, content=b"")


def test_a_cut_upload_keeps_what_came(shared_site: RunningSite, ada: Guest) -> None:
    data = b"z" * 300_000
    path = f"{API}/files/{digest_of(data)}"
    with socket.create_connection(("127.0.0.1", shared_site.port)) as sock:
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada.token}\r\nContent-Length: 300000\r\n\r\n"
        sock.sendall(head.encode() + data[:123_456])
    wait_for(lambda: ada.http.head(path).headers.get("Upload-Offset") == "123456", "the part that came")
    rest = {"Upload-Offset": "123456", "Upload-Length": "300000"}
    ada.ask("PUT", path, 201, content=data[123_456:], headers=rest)
    assert "request failed" not in shared_site.log()


def test_uploads_of_one_file_at_the_same_time_do_not_spoil_it(ada: Guest) -> None:
    data = hashlib.sha256(b"many").digest() * 200_000
    path = f"{API}/files/{digest_of(data)}"

    def send(number: int) -> int:
        for _ in range(60):
            answer = ada.http.head(path)
            if answer.status_code == 200:
                return number
            offset = int(answer.headers["Upload-Offset"])
            piece = data[offset : offset + 900_000 + 50_000 * number]
            headers = {"Upload-Offset": str(offset), "Upload-Length": str(len(data))}
            answer = ada.http.put(path, content=piece, headers=headers)
            assert answer.status_code in (201, 202, 409), answer.text
        raise AssertionError("it never got whole")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(send, range(4))) == [0, 1, 2, 3]
    assert int(ada.ask("HEAD", path).headers["Content-Length"]) == len(data)


def test_only_the_project_that_sent_a_file_has_it(ada: Guest, bob: Guest) -> None:
    path = f"{API}/files/{digest_of(b'secret')}"
    ada.ask("PUT", path, 201, content=b"secret")
    assert bob.http.head(path).status_code == 404
    spec = Spec(runner="fake", inputs=[Input(path="/x", digest=digest_of(b"secret"), size_bytes=6)])
    answer = bob.http.post(f"{API}/batches", content=msgspec.json.encode(BatchSubmission(spec=spec)))
    problem(answer, 422, "missing-input")


# --- hosts ------------------------------------------------------------------------------------------------------


def test_a_host_reads_the_inputs_of_its_tasks_only(ada: Guest, host: GuestHost) -> None:
    data = b"0123456789"
    path = f"{API}/host/files/{digest_of(data)}"
    ada.ask("PUT", f"{API}/files/{digest_of(data)}", 201, content=data)
    problem(host.http.get(path), 404, "not-found")
    batch = ada.submit(
        spec=Spec(runner="fake", inputs=[Input(path="/x", digest=digest_of(data), size_bytes=10)]), priority=900
    )
    task = host.turn(want=1).assignments[0]
    assert task.job == f"{batch}.1"
    assert host.http.get(path).content == data
    part = host.http.get(path, headers={"Range": "bytes=4-"})
    assert (part.status_code, part.content) == (206, b"456789")
    assert host.http.get(path, headers={"Range": "bytes=40-"}).status_code == 416
    host.turn(success(task.task))
    problem(host.http.get(path), 404, "not-found")


def test_results_that_are_not_here_are_no_success(ada: Guest) -> None:
    tar = results_tar(**{"a.txt": b"x" * 100_000})
    cases = {
        "output-missing": {"output_digest": digest_of(tar), "output_bytes": len(tar)},
        "digest-mismatch": {"output": tar[:5000], "output_digest": digest_of(tar), "output_bytes": 5000},
        "bad-output": {"output": b"not a tar", "output_digest": digest_of(b"not a tar"), "output_bytes": 9},
    }
    traversal = {"output_digest": "../../../../etc/passwd", "output_bytes": 5}
    for cause, lie in [*cases.items(), ("output-missing", traversal), ("output-missing", {"output_digest": "\0"})]:
        batch = ada.submit(policy=PolicyChoice(max_errors=0))
        host = ada.attach()  # one that fails rests for a while
        task = host.turn(want=1).assignments[0].task
        host.turn(TaskReport(task=task, outcome="success", exit_code=0, **lie))
        job = ada.job(f"{batch}.1")
        assert (job.state, job.tasks[0].outcome, job.tasks[0].cause) == ("failed", "error", cause)


def test_results_are_uploaded_and_handed_over(ada: Guest, host: GuestHost) -> None:
    tar = results_tar(**{"a.txt": b"x" * 100_000})
    batch = ada.submit()
    task = host.turn(want=1).assignments[0].task
    path = f"{API}/host/tasks/{task}/output"
    named = {"Digest": digest_of(tar), "Upload-Length": str(len(tar))}
    assert host.http.head(path, headers=named).headers["Upload-Offset"] == "0"
    assert host.http.put(path, content=tar[:500], headers=named).status_code == 202
    answer = host.http.put(path, content=tar[500:], headers={**named, "Upload-Offset": "500"})
    assert answer.status_code == 201
    assert host.http.head(path, headers=named).status_code == 200
    # What the host says of the size does not count; what came does.
    report = TaskReport(task=task, outcome="success", exit_code=0, output_digest=digest_of(tar), output_bytes=0)
    host.turn(report)
    wait_for(lambda: ada.job(f"{batch}.1").handed_over, "the hand-over")
    assert ada.job(f"{batch}.1").has_results
    assert ada.ask("GET", f"{API}/jobs/{batch}.1/results.tar").content == tar
    record = ada.ask("GET", f"{API}/jobs/{batch}.1/result.json").json()["predicate"]
    assert record["results"] == {"file": "results.tar", "digest": digest_of(tar), "bytes": len(tar)}


@pytest.mark.parametrize("hostile", ["link", "path", "device", "garbage", "unsorted"])
def test_hostile_results_are_refused(ada: Guest, host: GuestHost, hostile: str) -> None:
    import io
    import tarfile

    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in ("b", "a"):
            info = tarfile.TarInfo({"path": "../../etc/cron.d/x"}.get(hostile, name))
            if hostile == "link":
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            if hostile == "device":
                info.type = tarfile.CHRTYPE
            tar.addfile(info)
    data = b"\xff" * 10_240 if hostile == "garbage" else made.getvalue()
    ada.submit()
    task = host.turn(want=1).assignments[0].task
    path = f"{API}/host/tasks/{task}/output"
    named = {"Digest": digest_of(data)}
    problem(host.http.put(path, content=data, headers=named), 422, "bad-output")
    assert host.http.head(path, headers=named).headers["Upload-Offset"] == "0"
    assert host.http.put(path, content=data, headers={"Digest": "sha256:../../x"}).status_code == 422


def test_a_host_touches_its_own_tasks_only(ada: Guest, bob: Guest, host: GuestHost) -> None:
    other = bob.attach()
    batch = ada.submit()
    task = host.turn(want=1).assignments[0].task
    problem(other.http.post(f"{API}/host/tasks/{task}/log", content=b"lie"), 404, "not-found")
    assert other.http.put(f"{API}/host/tasks/{task}/output", content=b"x").status_code == 404
    assert other.turn(success(task), held=[task]).cancel == [task]
    assert ada.job(f"{batch}.1").state == "running"
    problem(bob.http.get(f"{API}/hosts/{host.id}"), 404, "not-found")
    problem(bob.http.delete(f"{API}/hosts/{host.id}"), 404, "not-found")
    assert host.id in {item["id"] for item in ada.get("/hosts")["items"]}
    assert host.id not in {item["id"] for item in bob.get("/hosts?all=1")["items"]}


def test_logs_are_appended_in_order_and_bounded(ada: Guest, host: GuestHost) -> None:
    batch = ada.submit()
    task = host.turn(want=1).assignments[0].task
    path = f"{API}/host/tasks/{task}/log"

    def send(offset: int, data: bytes) -> int:
        return int(host.http.post(path, params={"offset": offset}, content=data).json()["size_bytes"])

    assert send(0, b"one\n") == 4
    assert send(0, b"one\n") == 4
    assert send(9, b"gap\n") == 4
    assert send(4, b"100 % \xc3\xbc\n") == 13
    assert ada.ask("GET", f"{API}/jobs/{batch}.1/log").text == "one\n100 % ü\n"
    assert send(13, b"x" * (1 << 20)) == 1 << 20
    assert send(1 << 20, b"more") == 1 << 20
    problem(ada.http.get(f"{API}/jobs/{batch}.1/log?attempt=7"), 404, "not-found")
    problem(ada.http.get(f"{API}/jobs/{batch}.1/log?attempt=7&follow=1"), 404, "not-found")
    problem(ada.http.get(f"{API}/jobs/{batch}.1/log?follow=1&offset=x"), 422, "bad-request")
    assert ada.ask("GET", f"{API}/jobs/{batch}.1/log?attempt=0").status_code == 200


def test_a_detached_host_is_unknown_and_its_tasks_go_to_others(
    shared_site: RunningSite, ada: Guest, host: GuestHost
) -> None:
    leaver = ada.attach()
    batch = ada.submit()
    assert leaver.turn(want=1).assignments[0].job == f"{batch}.1"
    assert leaver.http.post(f"{API}/host/detach").status_code == 204
    problem(leaver.http.post(f"{API}/host/turn", content=b"{}"), 401, "bad-host-key")
    assert ada.job(f"{batch}.1").tasks[0].cause == "host-detached"
    assert host.turn(want=1).assignments[0].job == f"{batch}.1"
    removed = ada.attach()
    ada.ask("DELETE", f"{API}/hosts/{removed.id}", 204)
    problem(removed.http.post(f"{API}/host/turn", content=b"{}"), 401, "bad-host-key")
    problem(ada.http.get(f"{API}/hosts/{removed.id}"), 404, "not-found")


def test_a_host_that_leaves_while_it_waits_is_given_nothing(site: RunningSite) -> None:
    guest = site.operator()
    leaver, other = guest.attach(), guest.attach()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(leaver.turn, want=1, wait_seconds=20.0)
        wait_for(lambda: "hosts_waiting 1.0" in guest.http.get("/metrics").text, "the question")
        guest.ask("DELETE", f"{API}/hosts/{leaver.id}", 204)
        batch = guest.submit(1)
        assert other.turn(want=1, wait_seconds=10.0).assignments[0].job == f"{batch}.1"
        guest.submit(1)
        assert len(other.turn(want=1, wait_seconds=10.0).assignments) == 1
        site.stop()
        assert waiting.exception(10) is not None or waiting.result().assignments == []


def test_a_waiting_host_hears_of_work_at_once(shared_site: RunningSite) -> None:
    guest = shared_site.member("waiter", "waiting")
    host = guest.attach(platform="linux/riscv64")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(host.turn, want=1, wait_seconds=25.0)
        wait_for(lambda: "hosts_waiting 1.0" in guest.http.get("/metrics").text, "the question")
        started = time.monotonic()
        batch = guest.submit(1, priority=1000)
        answer = waiting.result(20)
    assert time.monotonic() - started < 2
    assert answer.assignments[0].job == f"{batch}.1"


def test_a_question_without_work_says_why_and_ends_in_time(shared_site: RunningSite) -> None:
    guest = shared_site.member("poor", "poor")
    host = guest.attach(cpus=1, runners=["container"])
    guest.submit(1)
    started = time.monotonic()
    answer = host.turn(want=1, wait_seconds=0.3)
    assert 0.25 < time.monotonic() - started < 5
    assert "host-runner" in {because.code for because in answer.why_no_work}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'{"reports": [{"task": "x"}]}', b'{"wait_seconds": 1e9}', b'{"want": {"cpus": 1}}',
        b'{"reports": [{"task": 1, "outcome": "won"}]}', b'{"reports": [{"task": 1, "outcome": "success", "output": "%"}]}',
        b'{"want": {"cpus": 1, "memory_bytes": 1, "disk_bytes": 1, "tasks": 100000}}', b"\xff",
    ],
)  # fmt: skip
def test_a_broken_turn_is_told_what_is_wrong(host: GuestHost, body: bytes) -> None:
    answer = host.http.post(f"{API}/host/turn", content=body)
    assert answer.status_code in (400, 422)
    problem(answer, answer.status_code, "bad-request")


def test_a_host_may_want_strange_amounts(host: GuestHost, ada: Guest) -> None:
    ada.submit(1)
    for amount in (-5, 0, 2**62):
        room = WorkRequest(cpus=float(amount), memory_bytes=amount, disk_bytes=amount, gpus=amount)
        host.say(Turn(want=room))


# --- streams ----------------------------------------------------------------------------------------------------


def events_of(response: httpx2.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_batch_is_followed_to_its_end(ada: Guest, host: GuestHost) -> None:
    batch = ada.submit(2)
    with ada.http.stream("GET", f"{API}/batches/{batch}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        news = events_of(response)
        assert next(news)[1]["counts"]["waiting"] == 2
        tasks = [each.task for each in host.turn(want=2).assignments]
        host.turn(*[success(task) for task in tasks])
        seen = [data for name, data in news if name == "batch"]
    assert seen[-1]["state"] == "done"
    assert seen[-1]["counts"]["done"] == 2


def test_a_log_is_followed_to_its_end(ada: Guest, host: GuestHost) -> None:
    batch = ada.submit(1)
    with ada.http.stream("GET", f"{API}/jobs/{batch}.1/log?follow=1") as response:
        news = events_of(response)
        assert next(news)[1]["state"] == "waiting"
        task = host.turn(want=1).assignments[0].task
        path = f"{API}/host/tasks/{task}/log"
        host.http.post(path, content="ü".encode()[:1])
        host.http.post(path, params={"offset": 1}, content="ü".encode()[1:] + b"ber\n")
        host.turn(msgspec.structs.replace(success(task), log=b"end\n", log_offset=6))
        seen = list(news)
    text = "".join(data["text"] for name, data in seen if name == "log")
    assert text == "über\nend\n"
    assert seen[-1][0] == "end"
    assert seen[-1][1]["state"] == "done"
    with ada.http.stream("GET", f"{API}/jobs/{batch}.1/log?follow=1&offset=3") as response:
        again = list(events_of(response))
    assert [name for name, _ in again] == ["log", "end"]
    assert again[0][1]["text"] == "er\nend\n"


def test_followers_who_leave_are_forgotten(shared_site: RunningSite, ada: Guest) -> None:
    batch = ada.submit(1)
    for _ in range(5):
        with ada.http.stream("GET", f"{API}/batches/{batch}/events") as response:
            next(events_of(response))
    ada.ask("POST", f"{API}/batches/{batch}/cancel")
    assert "Traceback" not in shared_site.log()


# --- images -----------------------------------------------------------------------------------------------------


def saved_image(size: int) -> tuple[bytes, str]:
    """An image as an OCI archive, and the digest of its manifest."""
    plain = layer(data=bytes(range(256)) * (size // 256))
    kept = oci.describe(plain, oci.OCI_LAYER)
    config = oci.encode(
        oci.Config(architecture="amd64", os="linux", rootfs=oci.RootFilesystem(diff_ids=[oci.digest_of(plain)]))
    )
    manifest = oci.encode(oci.make_manifest(oci.describe(config, oci.OCI_CONFIG), [kept]))
    part = oci.describe(manifest, oci.OCI_MANIFEST)
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": oci.encode(oci.make_index([part]))}
    files |= {f"blobs/{oci.digest_of(blob).replace(':', '/')}": blob for blob in (plain, config, manifest)}
    return layer(**files), part.digest


def test_an_archive_becomes_an_image_that_hosts_of_its_jobs_read(ada: Guest, bob: Guest, host: GuestHost) -> None:
    archive, digest = saved_image(600_000)
    view = ada.ask("POST", f"{API}/images/archive?reference=lab/tool:1", 201, content=archive).json()
    assert (view["reference"], view["digest"]) == ("docker.io/lab/tool:1", digest)
    again = ada.ask("POST", f"{API}/images", 201, content=msgspec.json.encode({"reference": "lab/tool:1"})).json()
    assert again["id"] == view["id"]
    assert bob.get("/images")["items"] == []
    runner = ada.attach(runners=["container"])
    batch = ada.submit(spec=Spec(image="lab/tool:1", command=["x"]))
    assert ada.batch(batch).image_digest == digest
    assignment = runner.turn(want=1).assignments[0]
    path = f"/v2/{assignment.image_name}/manifests/{assignment.image_manifest}"
    assert runner.http.get(path).status_code == 200
    assert host.http.get(path).status_code == 404
    assert bob.http.get(path).status_code == 404
    assert ada.http.get(path).status_code == 200
    ada.ask("POST", f"{API}/batches/{batch}/cancel")
    assert runner.http.get(path).status_code == 404
    ada.ask("DELETE", f"{API}/images/{view['id']}", 204)


def test_an_image_counts_as_storage(shared_site: RunningSite) -> None:
    guest = shared_site.member("ivy", "images")

    def limit(transaction: Any) -> None:
        row = transaction.one("SELECT id FROM projects WHERE name = 'images'")
        accounts.set_limit(transaction, row[0], "storage_bytes", 500_000)

    shared_site.look(limit)
    large, _ = saved_image(600_000)
    small, _ = saved_image(300_000)
    problem(guest.http.post(f"{API}/images/archive?reference=a", content=large), 403, "quota-exceeded")
    for _ in range(2):
        guest.ask("POST", f"{API}/images/archive?reference=a", 201, content=small)
    assert 300_000 < guest.get("/quota")["usage"]["storage_bytes"] < 310_000


@pytest.mark.parametrize("body", [b"", b"not an archive" * 1000, b"\x1f\x8b" + b"\0" * 500, b"\0" * 10_240])
def test_what_is_no_archive_is_no_image(ada: Guest, body: bytes) -> None:
    answer = ada.http.post(f"{API}/images/archive?reference=x", content=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in ("image-refused", "bad-image")


def test_an_archive_that_is_cut_leaves_nothing_behind(shared_site: RunningSite, ada: Guest) -> None:
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", shared_site.port)) as sock:
            head = (
                f"POST {API}/images/archive?reference=cut HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada.token}\r\n"
                "Content-Length: 30000000\r\n\r\n"
            )
            sock.sendall(head.encode() + b"\0" * 3_000_000)
    # Whoever comes next does not wait for those who left.
    answer = ada.http.post(f"{API}/images/archive?reference=x", content=b"nothing", timeout=10)
    assert answer.status_code == 422
    wait_for(lambda: not list((shared_site.data / "scratch").glob("tmp*")), "an empty scratch folder")
    assert "request failed" not in shared_site.log()
    assert "never retrieved" not in shared_site.log()


def test_slow_archives_keep_nobody_else_waiting(shared_site: RunningSite, ada: Guest) -> None:
    socks = [socket.create_connection(("127.0.0.1", shared_site.port)) for _ in range(16)]
    try:
        for sock in socks:
            head = (
                f"POST {API}/images/archive?reference=slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada.token}\r\n"
                "Content-Length: 30000000\r\n\r\n"
            )
            sock.sendall(head.encode() + b"\0" * 1000)
        assert ada.http.get(f"{API}/batches", timeout=5).status_code == 200
        assert ada.http.get("/readyz", timeout=5).status_code == 200
    finally:
        for sock in socks:
            sock.close()
