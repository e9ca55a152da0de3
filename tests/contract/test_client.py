"""The client against a site that breaks off, restarts and repeats itself: nothing is lost, and nothing is done twice."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from distributio.sdk import transfers
from distributio.sdk.client import Client
from distributio.sdk.errors import SiteError, SiteUnreachable
from distributio.sdk.executor import Executor, JobFailed
from distributio.sdk.follow import JobChanged, JobEnded, LogText
from distributio.sdk.tars import digest_file, pack_folder
from distributio.wire.native import BatchSubmission, Spec

PATIENCE_SECONDS = 20.0


class Call:
    """One request, and the ways to answer it; `cut` hangs up in the middle."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        self.method = handler.command
        self.path, _, self.query = handler.path.partition("?")
        self.headers = handler.headers
        self.body = self._read()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self._handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()
        if self.method != "HEAD":
            self._handler.wfile.write(body)

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.answer(status, msgspec.json.encode(value), **headers)

    def problem(self, status: int, code: str, **headers: str) -> None:
        body = {
            "title": "It went wrong",
            "status": status,
            "code": code,
            "detail": "because of it",
            "advice": "Do this",
        }
        self.json(body, status, **headers)

    def cut(self, status: int | None = None, body: bytes = b"", **headers: str) -> None:
        if status is not None:
            self._handler.send_response(status)
            for name, value in headers.items():
                self._handler.send_header(name.replace("_", "-"), value)
            self._handler.end_headers()
            self._handler.wfile.write(body)
        self._handler.close_connection = True

    def events(self, *events: tuple[str, Any], whole: bool) -> None:
        text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events).encode()
        self._handler.send_response(200)
        self._handler.send_header("Content-Type", "text/event-stream")
        self._handler.send_header("Content-Length", str(len(text) + (0 if whole else 1)))
        self._handler.end_headers()
        self._handler.wfile.write(text)
        self._handler.close_connection = True

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self._handler.rfile.readline(), 16):
                pieces.append(self._handler.rfile.read(size))
                self._handler.rfile.readline()
            self._handler.rfile.readline()
            return b"".join(pieces)
        return self._handler.rfile.read(int(self.headers.get("Content-Length", "0")))


class Site:
    """A scripted site: `script` answers one request after the other; every one is kept in `calls`."""

    def __init__(self) -> None:
        self.script: Callable[[Call, int], None] = lambda call, number: call.problem(500, "unscripted")
        self.calls: list[Call] = []
        site = self
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                call = Call(self)
                with lock:
                    site.calls.append(call)
                    number = len(site.calls) - 1
                site.script(call, number)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                """Tests print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def lines(self) -> list[str]:
        return [f"{call.method} {call.path}" for call in self.calls]


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    with Client(site.url, "dio_secret", "lab", patience_seconds=PATIENCE_SECONDS) as made:
        yield made


def a_job(**changes: Any) -> dict[str, Any]:
    job = {
        "id": "7.1", "batch": 7, "position": 1, "name": "", "project": "lab", "state": "running", "reasons": [],
        "command": ["true"], "variables": {}, "exit_code": None, "cause": "", "created_at": 1.0, "decided_at": None,
        "has_results": False, "handed_over": False,
    }  # fmt: skip
    return {**job, **changes}


def a_batch(**changes: Any) -> dict[str, Any]:
    batch = {
        "id": 7, "project": "lab", "name": "", "user": "me", "state": "active", "created_at": 1.0, "ended_at": None,
        "job_count": 1, "counts": {"waiting": 1}, "priority": 0, "labels": {}, "image": "a", "image_digest": "",
        "spec": {}, "policy": {},
    }  # fmt: skip
    return {**batch, **changes}


SUBMISSION = BatchSubmission(spec=Spec(image="python:alpine"))


# --- requests ---------------------------------------------------------------------------------------------------


def test_token_and_project_go_with_every_request(site: Site, client: Client) -> None:
    site.script = lambda call, number: call.json(a_job())
    assert client.job("7.1").state == "running"
    assert site.calls[0].headers["Authorization"] == "Bearer dio_secret"
    assert site.calls[0].query == "project=lab"


def test_a_submission_is_repeated_with_its_key_when_the_answer_is_lost(site: Site, client: Client) -> None:
    site.script = lambda call, number: call.cut() if number < 2 else call.json(a_batch(), 201)
    assert client.submit(SUBMISSION).id == 7
    keys = {call.headers["Idempotency-Key"] for call in site.calls}
    assert len(site.calls) == 3
    assert len(keys) == 1
    assert len({call.body for call in site.calls}) == 1


def test_two_submissions_have_two_keys(site: Site, client: Client) -> None:
    site.script = lambda call, number: call.json(a_batch(), 201)
    client.submit(SUBMISSION)
    client.submit(SUBMISSION)
    assert site.calls[0].headers["Idempotency-Key"] != site.calls[1].headers["Idempotency-Key"]


def test_what_is_not_harmless_twice_is_sent_once(site: Site, client: Client) -> None:
    site.script = lambda call, number: call.cut()
    with pytest.raises(SiteUnreachable):
        client.create_token("laptop")
    assert len(site.calls) == 1


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_site_behind_a_proxy_is_waited_for(site: Site, client: Client, status: int) -> None:
    site.script = lambda call, number: call.answer(status, b"<html>") if number < 2 else call.json(a_batch())
    assert client.batch(7).id == 7


def test_a_busy_site_is_asked_again_when_it_said(site: Site, client: Client) -> None:
    def script(call: Call, number: int) -> None:
        if number == 0:
            call.problem(429, "too-many-requests", Retry_After="0.2")
        else:
            call.json({"id": 1, "name": "x", "created_at": 1.0, "expires_at": None, "secret": "s"}, 201)

    site.script = script
    assert client.create_token("x").secret == "s"


def test_a_refusal_says_what_why_and_what_to_do(site: Site, client: Client) -> None:
    site.script = lambda call, number: call.problem(403, "quota-exceeded")
    with pytest.raises(SiteError) as refusal:
        client.submit(SUBMISSION)
    assert str(refusal.value) == "It went wrong. Because of it. Do this."
    assert (refusal.value.code, refusal.value.status) == ("quota-exceeded", 403)
    assert len(site.calls) == 1


def test_an_answer_from_something_else_is_recognised(site: Site, client: Client) -> None:
    site.script = lambda call, number: call.answer(404, b"<html>nginx</html>")
    with pytest.raises(SiteError, match="Check that the address"):
        client.whoami()


def test_nobody_there_ends_in_words_when_patience_is_used_up(site: Site) -> None:
    site.close()
    heard: list[str] = []
    try:
        words = r"does not answer.*connection refused.*distributio serve"
        client = Client(site.url, patience_seconds=0.3, on_retry=heard.append)
        with client, pytest.raises(SiteUnreachable, match=words):
            client.status()
        assert heard
    finally:
        site.close = lambda: None  # type: ignore[method-assign]  # it is closed


def test_pages_are_followed(site: Site, client: Client) -> None:
    def script(call: Call, number: int) -> None:
        last = "cursor=7.2" in call.query
        items = [a_job(id="7.3", position=3)] if last else [a_job(), a_job(id="7.2", position=2)]
        call.json({"items": items, "cursor": None if last else "7.2"})

    site.script = script
    assert [job.id for job in client.jobs(7, "failed")] == ["7.1", "7.2", "7.3"]
    assert all("state=failed" in call.query and "project=lab" in call.query for call in site.calls)


# --- streams ----------------------------------------------------------------------------------------------------


def log_event(text: str, offset: int, task: int = 5) -> tuple[str, Any]:
    return "log", {"text": text, "offset": offset, "task": task}


def test_a_log_goes_on_where_a_restart_broke_it_off(site: Site, client: Client) -> None:
    def script(call: Call, number: int) -> None:
        if number == 0:
            call.events(("state", a_job()), log_event("één\n", 6), log_event("two\n", 10), whole=False)
        elif number == 1:
            call.cut()
        elif number == 2:
            call.problem(503, "shutting-down")
        else:
            end = a_job(state="done", exit_code=0)
            call.events(("state", a_job()), log_event("three\n", 16), ("end", end), whole=True)

    site.script = script
    events = list(client.follow_log("7.1"))
    assert "".join(event.text for event in events if isinstance(event, LogText)) == "één\ntwo\nthree\n"
    assert [event.job.state for event in events if isinstance(event, JobChanged)] == ["running"]
    assert isinstance(events[-1], JobEnded)
    assert events[-1].job.exit_code == 0
    assert ["offset=10" in call.query and "task=5" in call.query for call in site.calls] == [False, True, True, True]


def test_the_log_of_another_copy_is_read_from_its_beginning(site: Site, client: Client) -> None:
    def script(call: Call, number: int) -> None:
        if number == 0:
            call.events(log_event("first copy\n", 11, task=5), whole=False)
        elif number == 1:
            call.events(log_event(" middle\n", 19, task=6), whole=False)
        else:
            call.events(log_event("second in the middle\n", 21, task=6), ("end", a_job(state="done")), whole=True)

    site.script = script
    texts = [event.text for event in client.follow_log("7.1") if isinstance(event, LogText)]
    assert texts == ["first copy\n", "second in the middle\n"]
    assert "offset=0" in site.calls[2].query


def test_following_what_is_not_there_is_refused_at_once(site: Site, client: Client) -> None:
    site.script = lambda call, number: call.problem(404, "not-found")
    with pytest.raises(SiteError):
        list(client.follow_log("7.9"))
    assert len(site.calls) == 1


def test_following_a_site_that_never_comes_back_ends(site: Site) -> None:
    site.script = lambda call, number: call.events(log_event("a", 1), whole=False) if number == 0 else call.cut()
    with Client(site.url, patience_seconds=0.5) as client, pytest.raises(SiteUnreachable):
        list(client.follow_log("7.1"))


def test_a_batch_is_watched_to_its_end_over_a_restart(site: Site, client: Client) -> None:
    def script(call: Call, number: int) -> None:
        if number == 0:
            call.events(("batch", a_batch()), ("batch", a_batch(counts={"running": 1})), whole=False)
        else:
            call.events(("batch", a_batch(state="done", counts={"done": 1})), whole=True)

    site.script = script
    assert [batch.state for batch in client.watch_batch(7)] == ["active", "active", "done"]


# --- files ------------------------------------------------------------------------------------------------------


class FileStore:
    """The site's side of an upload; `lose` connections after so many bytes of a request."""

    def __init__(self, held: bytes = b"", lose: int = 0) -> None:
        self.bytes = held
        self.lose = lose
        self.whole = False

    def __call__(self, call: Call, number: int) -> None:
        if call.method == "HEAD":
            if self.whole:
                call.answer(200)
            else:
                call.answer(404, Upload_Offset=str(len(self.bytes)))
            return
        if int(call.headers["Upload-Offset"]) != len(self.bytes):
            call.problem(409, "wrong-offset", Upload_Offset=str(len(self.bytes)))
        elif self.lose:
            self.lose -= 1
            self.bytes += call.body[: len(call.body) // 2]
            call.cut()
        else:
            self._append(call)

    def _append(self, call: Call) -> None:
        self.bytes += call.body
        if len(self.bytes) < int(call.headers["Upload-Length"]):
            call.answer(202, Upload_Offset=str(len(self.bytes)))
        elif call.path.endswith(hashlib.sha256(self.bytes).hexdigest()):
            self.whole = True
            call.answer(201)
        else:
            self.bytes = b""
            call.problem(422, "digest-mismatch")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "PIECE_BYTES", 1000)


def test_an_input_is_sent_once_and_then_known(site: Site, client: Client, tmp_path: Path) -> None:
    store = FileStore()
    site.script = store
    file = tmp_path / "data.csv"
    file.write_bytes(b"1,2,3\n")
    first = client.upload_input(file, "/data.csv")
    again = client.upload_input(file, "/data.csv")
    assert first == again
    assert (first.digest, first.size_bytes, first.is_folder) == (digest_file(file).digest, 6, False)
    assert [call.method for call in site.calls] == ["HEAD", "PUT", "HEAD"]


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5500])
def test_files_of_every_size_arrive_in_pieces(
    site: Site, client: Client, tmp_path: Path, small_pieces: None, size: int
) -> None:
    store = FileStore()
    site.script = store
    file = tmp_path / "data"
    file.write_bytes(bytes(index % 251 for index in range(size)))
    seen: list[tuple[int, int]] = []
    client.upload_input(file, "/data", progress=lambda done, total: seen.append((done, total)))
    assert store.whole
    assert store.bytes == file.read_bytes()
    assert seen[-1] == (size, size)


def test_an_upload_goes_on_from_what_the_site_holds(
    site: Site, client: Client, tmp_path: Path, small_pieces: None
) -> None:
    content = bytes(range(256)) * 20
    store = FileStore(held=content[:2500], lose=4)
    site.script = store
    file = tmp_path / "data"
    file.write_bytes(content)
    client.upload_input(file, "/data")
    assert store.bytes == content
    assert site.calls[1].headers["Upload-Offset"] == "2500"


def test_bytes_that_are_not_what_they_were_are_sent_again(
    site: Site, client: Client, tmp_path: Path, small_pieces: None
) -> None:
    store = FileStore(held=b"something else")
    site.script = store
    file = tmp_path / "data"
    file.write_bytes(b"x" * 3000)
    client.upload_input(file, "/data")
    assert store.bytes == b"x" * 3000


def test_a_refused_upload_is_not_insisted_on(site: Site, client: Client, tmp_path: Path) -> None:
    site.script = lambda call, number: (
        call.answer(404, Upload_Offset="0") if call.method == "HEAD" else call.problem(422, "too-large")
    )
    file = tmp_path / "data"
    file.write_bytes(b"x")
    with pytest.raises(SiteError):
        client.upload_input(file, "/data")
    assert len(site.calls) == 2


def test_equal_folders_are_equal_bytes(tmp_path: Path) -> None:
    for name, order in (("one", ("b", "a")), ("two", ("a", "b"))):
        folder = tmp_path / name
        (folder / "sub").mkdir(parents=True)
        for file in order:
            (folder / file).write_text(file)
        (folder / "sub" / "ünï code.txt").write_text("x")
        (folder / "link").symlink_to("a")
        (folder / "run.sh").write_text("#!/bin/sh\n")
        (folder / "run.sh").chmod(0o700)
        with (tmp_path / f"{name}.tar").open("wb") as output:
            pack_folder(folder, output)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_a_folder_is_sent_as_a_tar(site: Site, client: Client, tmp_path: Path) -> None:
    store = FileStore()
    site.script = store
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("a")
    assert client.upload_input(tmp_path / "data", "/data").is_folder
    assert b"ustar" in store.bytes


def test_results_are_fetched_on_from_where_the_connection_broke(site: Site, client: Client, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40

    def script(call: Call, number: int) -> None:
        wanted = call.headers.get("Range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        length = str(len(content) - start)
        if number == 0:
            call.cut(200, content[:3000], Content_Length=length, ETag='"one"')
        elif number == 1:
            assert call.headers["If-Range"] == '"one"'
            call.cut(206, content[start : start + 3000], Content_Length=length, ETag='"one"')
        else:
            call.answer(206, content[start:], ETag='"one"')

    site.script = script
    target = tmp_path / "results" / "7" / "7.1" / "results.tar"
    assert client.download_results("7.1", target) == len(content)
    assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["results.tar"]
    assert "Range" not in site.calls[0].headers
    assert site.calls[2].headers["Range"] == "bytes=6000-"


def test_results_that_changed_meanwhile_are_fetched_anew(site: Site, client: Client, tmp_path: Path) -> None:
    def script(call: Call, number: int) -> None:
        if number == 0:
            call.cut(200, b"old", Content_Length="10", ETag='"old"')
        else:
            call.answer(200, b"new bytes", ETag='"new"')

    site.script = script
    client.download_results("7.1", tmp_path / "results.tar")
    assert (tmp_path / "results.tar").read_bytes() == b"new bytes"


def test_no_results_leave_nothing_behind(site: Site, client: Client, tmp_path: Path) -> None:
    site.script = lambda call, number: call.problem(404, "no-results")
    with pytest.raises(SiteError):
        client.download_results("7.1", tmp_path / "results.tar")
    assert list(tmp_path.iterdir()) == []


def test_the_record_is_waited_for_until_the_job_is_handed_over(site: Site, client: Client) -> None:
    site.script = lambda call, number: call.problem(409, "not-handed-over") if number < 3 else call.answer(200, b"{}")
    assert client.result_record("7.1") == b"{}"
    site.script = lambda call, number: call.problem(409, "not-handed-over")
    with pytest.raises(SiteError, match="Do this"):
        client.result_record("7.1", wait_seconds=0.2)


def test_an_image_archive_is_streamed_once(site: Site, client: Client) -> None:
    image = {"id": 1, "reference": "a:1", "digest": "", "platforms": {}, "size_bytes": 3, "created_at": 1.0}
    site.script = lambda call, number: call.json(image, 201) if call.method == "POST" else call.answer(200)
    seen: list[int] = []
    made = client.upload_image("a:1", iter([b"ab", b"c"]), lambda done, total: seen.append(done), 3)
    assert made.reference == "a:1"
    assert site.calls[-1].body == b"abc"
    assert "reference=a%3A1" in site.calls[-1].query
    assert seen == [2, 3]


# --- futures ----------------------------------------------------------------------------------------------------


def test_an_executor_returns_jobs_in_order_and_raises_for_what_failed(site: Site, client: Client) -> None:
    jobs = [
        a_job(state="done", exit_code=0),
        a_job(id="7.2", position=2, state="failed", exit_code=3, cause="exit-code"),
    ]

    def script(call: Call, number: int) -> None:
        if call.method == "POST":
            call.json(a_batch(job_count=2), 201)
        elif call.path.endswith("/events"):
            call.events(("batch", a_batch(state="ended", counts={"done": 1, "failed": 1})), whole=True)
        else:
            call.json({"items": jobs})

    site.script = script
    with Executor(client) as executor:
        outcomes = executor.map_commands("python:alpine", [["true"], ["sh", "-c", "exit 3"]])
        assert next(outcomes).id == "7.1"
        with pytest.raises(JobFailed, match="exit code 3"):
            next(outcomes)
        assert executor.submit_command("python:alpine", ["true"]).result(timeout=30).state == "done"
    sent = msgspec.json.decode(site.calls[0].body, type=BatchSubmission)
    assert sent.jobs is not None
    assert [job.command for job in sent.jobs] == [["true"], ["sh", "-c", "exit 3"]]
    with pytest.raises(RuntimeError):
        executor.submit_command("python:alpine", ["true"])
