"""A site that does what a test tells it, for examining agents: it hands out what it is given, and can lie, cut and be away."""

import hashlib
import io
import json
import re
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from distributio.agent.hardware import platform_name
from distributio.wire import oci
from distributio.wire.native import (
    Assignment,
    Attach,
    Attached,
    HostFacts,
    Input,
    LogAnswer,
    Problem,
    Spec,
    TaskReport,
    Turn,
    TurnAnswer,
)

DEADLINE_SECONDS = 20.0
KEY = "a-key"


def layer(**files: bytes) -> bytes:
    """A layer of an image: a plain tar of these files."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return output.getvalue()


class ScriptedSite:
    """The site. Its attributes are what a test sets and looks at; `lock` guards them while the site runs."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.is_away = False
        self.knows_key = True
        self.waiting: list[Assignment] = []
        self.cancelled: set[int] = set()
        self.facts: HostFacts | None = None
        self.reports: dict[int, TaskReport] = {}
        self.report_times: dict[int, int] = {}
        self.acknowledges = True
        self.turns: list[Turn] = []
        self.newest = 0
        self.logs: dict[int, bytearray] = {}
        self.log_pieces: list[tuple[int, int, bytes, float]] = []
        self.outputs: dict[int, bytearray] = {}
        self.output_starts: list[int] = []
        self.cut_upload_after: int | None = None
        self.blobs: dict[str, bytes] = {}
        self.blob_requests: list[tuple[str, str]] = []
        self.cut_blob_after: int | None = None
        self.detached = False
        self._last_task = 0
        self._server: ThreadingHTTPServer | None = None
        self.url = ""

    def give(self, spec: Spec, image_name: str = "", image_manifest: str = "") -> int:
        """Let the next host that asks have a task; return its number."""
        with self.lock:
            self._last_task += 1
            task = self._last_task
            self.waiting.append(
                Assignment(
                    task=task,
                    job=f"1.{task}",
                    project="science",
                    spec=spec,
                    image_name=image_name,
                    image_manifest=image_manifest,
                    deadline_at=time.time() + 3600,
                )
            )
            self.lock.notify_all()
        return task

    def cancel(self, task: int) -> None:
        """The task is not wanted any more."""
        with self.lock:
            self.cancelled.add(task)
            self.lock.notify_all()

    def add_file(self, data: bytes) -> Input:
        """A file of the site's, as an input of a task."""
        digest = oci.digest_of(data)
        self.blobs[digest] = data
        return Input(path="/data/input", digest=digest, size_bytes=len(data))

    def add_image(self, *layers: bytes) -> str:
        """An image of these layers; return its manifest's digest."""
        config = json.dumps(
            {
                "architecture": platform_name().partition("/")[2],
                "os": "linux",
                "config": {"Cmd": ["sh"]},
                "rootfs": {"type": "layers", "diff_ids": [oci.digest_of(layer) for layer in layers]},
            }
        ).encode()
        for data in (config, *layers):
            self.blobs[oci.digest_of(data)] = data
        manifest = oci.make_manifest(
            oci.describe(config, oci.OCI_CONFIG), [oci.describe(layer, oci.OCI_LAYER) for layer in layers]
        )
        data = oci.encode(manifest)
        self.blobs[oci.digest_of(data)] = data
        return oci.digest_of(data)

    def until(self, condition: Callable[["ScriptedSite"], object], what: str) -> None:
        """Wait until something is so, and fail saying what did not come."""
        with self.lock:
            if not self.lock.wait_for(lambda: condition(self), DEADLINE_SECONDS):
                last = self.turns[-1].held if self.turns else "no turn at all"
                raise AssertionError(f"{what} did not happen in {DEADLINE_SECONDS} s; the host last held: {last}")

    def report(self, task: int) -> TaskReport:
        """The task's report, waited for."""
        self.until(lambda site: task in site.reports, f"the report of task {task}")
        return self.reports[task]

    def until_phase(self, task: int, phase: str) -> None:
        """Wait until the host says so of the task."""
        self.until(
            lambda site: any(one.task == task and one.phase == phase for turn in site.turns[-3:] for one in turn.held),
            f"task {task} {phase}",
        )

    # --- answers ------------------------------------------------------------------------------------------------

    def turn(self, turn: Turn) -> TurnAnswer:
        """Answer when there is something to say, when a newer turn came, or when the host has waited long enough."""
        with self.lock:
            self.newest += 1
            mine = self.newest
            self.turns.append(turn)
            self.facts = turn.facts or self.facts
            for report in turn.reports:
                self.reports.setdefault(report.task, report)
                self.report_times[report.task] = self.report_times.get(report.task, 0) + 1
            self.lock.notify_all()
            self.lock.wait_for(lambda: self._has_news(turn) or self.newest > mine, turn.wait_seconds)
            answer = TurnAnswer(now=time.time())
            if self.acknowledges:
                answer.acknowledged = [report.task for report in turn.reports]
            answer.cancel = [one.task for one in turn.held if one.task in self.cancelled]
            if turn.want is not None and self.newest == mine:
                answer.assignments = self._take(turn)
            return answer

    def _has_news(self, turn: Turn) -> bool:
        cancelled = any(one.task in self.cancelled for one in turn.held)
        return self.is_away or bool(turn.reports) or cancelled or (turn.want is not None and bool(self.waiting))

    def _take(self, turn: Turn) -> list[Assignment]:
        want = turn.want
        assert want is not None
        taken: list[Assignment] = []
        cpus = want.cpus
        while self.waiting and len(taken) < want.tasks and self.waiting[0].spec.limits.cpus <= cpus:
            taken.append(self.waiting.pop(0))
            cpus -= taken[-1].spec.limits.cpus
        return taken

    def append_log(self, task: int, offset: int, data: bytes) -> int:
        """Append if the offset is right; say how much is held."""
        with self.lock:
            held = self.logs.setdefault(task, bytearray())
            if offset == len(held):
                held += data
                self.log_pieces.append((task, offset, data, time.monotonic()))
            self.lock.notify_all()
            return len(held)

    @contextmanager
    def running(self) -> Iterator["ScriptedSite"]:
        """Serve on a free port."""
        site = self

        class Handler(_Handler):
            pass

        Handler.site = site
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            with self.lock:
                self.is_away = True
                self.lock.notify_all()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Cut(Exception):
    """The connection is to break here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    site: ScriptedSite

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_Cut, ConnectionError):
            self.close_connection = True

    def _route(self) -> None:
        site = self.site
        if site.is_away:
            self.connection.shutdown(socket.SHUT_RDWR)
            raise _Cut
        path = self.path.partition("?")[0]
        if path != "/api/v1/hosts" and not site.knows_key:
            self._body()
            self._answer(401, msgspec.json.encode(Problem(title="Unknown key", status=401, code="unknown-key")))
        elif match := re.fullmatch(r"/api/v1/host/tasks/(\d+)/output", path):
            self._output(int(match[1]))
        elif match := re.fullmatch(r"/api/v1/host/tasks/(\d+)/log", path):
            offset = int(self.path.rpartition("offset=")[2])
            held = site.append_log(int(match[1]), offset, self._body())
            self._answer(200, msgspec.json.encode(LogAnswer(size_bytes=held)))
        elif match := re.fullmatch(r"(?:/api/v1/host/files|/v2/[^/]+/(?:blobs|manifests))/(sha256:[0-9a-f]{64})", path):
            self._blob(match[1])
        elif path == "/api/v1/host/turn":
            answer = site.turn(msgspec.json.decode(self._body(), type=Turn))
            if site.is_away:
                raise _Cut
            self._answer(200, msgspec.json.encode(answer))
        elif path == "/api/v1/hosts":
            site.facts = msgspec.json.decode(self._body(), type=Attach).facts
            self._answer(201, msgspec.json.encode(Attached(host="h1", key=KEY, site_name="Scripted")))
        elif path == "/api/v1/host/detach":
            self._body()
            site.detached = True
            self._answer(204)
        elif path == "/livez":
            self._answer(200, b"ok")
        else:
            self._answer(404, msgspec.json.encode(Problem(title="Not here", status=404, code="not-found")))

    do_GET = do_POST = do_PUT = do_HEAD = _route  # noqa: N815  # the names http.server looks for

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _blob(self, digest: str) -> None:
        site = self.site
        data = site.blobs.get(digest)
        asked = self.headers.get("Range", "")
        with site.lock:
            site.blob_requests.append((digest, asked))
            cut, site.cut_blob_after = site.cut_blob_after, None
        if data is None:
            self._answer(404, msgspec.json.encode(Problem(title="No such file", status=404, code="not-found")))
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : None if cut is None else start + cut])
        if cut is not None:
            self.wfile.flush()
            raise _Cut

    def _output(self, task: int) -> None:
        site = self.site
        held = site.outputs.setdefault(task, bytearray())
        if self.command == "HEAD":
            self._answer(404, Upload_Offset=str(len(held)))
            return
        start, total = int(self.headers["Upload-Offset"]), int(self.headers["Upload-Length"])
        if start != len(held):
            self._answer(409, Upload_Offset=str(len(held)))
            return
        with site.lock:
            site.output_starts.append(start)
            cut, site.cut_upload_after = site.cut_upload_after, None
        held += self.rfile.read(total - start if cut is None else cut)
        if cut is not None:
            self.connection.shutdown(socket.SHUT_RDWR)
            raise _Cut
        is_right = "sha256:" + hashlib.sha256(held).hexdigest() == self.headers["Digest"]
        self._answer(201 if is_right else 422, json.dumps({}).encode())
