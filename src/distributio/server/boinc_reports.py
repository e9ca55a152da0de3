"""What a BOINC client's report means: how the task ended, and the output the site really holds.

A client reports success also where its upload was refused, so nothing counts that is not in the waiting room. A task of the
container program says in its last words how the job ended; a native program's end is told by its exit status.
"""

import hashlib
import io
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from distributio.lifecycle.model import Outcome, Report
from distributio.server.boinc_names import CONTAINER_APP, TaskName, read_task
from distributio.server.boinc_state import Catalog
from distributio.server.boinc_uploads import WaitingRoom
from distributio.server.site import Site
from distributio.server.turns import Returned, room_for_log
from distributio.store import boinc
from distributio.store.files import output_key
from distributio.wire import boinc_scheduler as wire
from distributio.wire.boinc_scheduler import ReportedResult
from distributio.wire.native import INLINE_OUTPUT_BYTES, LOG_BYTES
from distributio.wire.results_tar import Bounds, normalise, verify
from distributio.wire.tar_blocks import BadResults

LAST_WORDS = "##distributio report "
_MOST_WALL = 1e9
STATE_ABORTED = 6
STATE_DOWNLOAD_FAILED = 1
_OUTCOMES = {
    "success": Outcome.SUCCESS,
    "failed": Outcome.FAILED,
    "error": Outcome.ERROR,
    "abandoned": Outcome.ABANDONED,
}
# What the client's own exit statuses mean: whose fault, and why.
_CLIENT_SAYS: dict[int, tuple[Outcome, str]] = {
    wire.EXIT_DISK_LIMIT: (Outcome.FAILED, "disk-limit"),
    wire.EXIT_TIME_LIMIT: (Outcome.FAILED, "wall-limit"),
    wire.EXIT_MEMORY_LIMIT: (Outcome.FAILED, "memory-limit"),
    wire.EXIT_UNSTARTED_LATE: (Outcome.ABANDONED, "waited-too-long"),
    wire.EXIT_ABORTED_BY_CLIENT: (Outcome.ABANDONED, "owner-stopped"),
    wire.EXIT_ABORTED_BY_PROJECT: (Outcome.ABANDONED, "owner-stopped"),
    wire.EXIT_ABORTED_BY_USER: (Outcome.ABANDONED, "owner-stopped"),
    wire.EXIT_INIT_FAILURE: (Outcome.ABANDONED, "runner-missing"),
    -186: (Outcome.ERROR, "input-missing"),
    -185: (Outcome.ERROR, "engine-error"),
}


class LastWords(Struct, frozen=True, kw_only=True):
    """What the container program says of a job before it ends."""

    outcome: str
    exit_code: int | None = None
    cause: str = ""
    detail: str = ""
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


class Heard(Struct, kw_only=True):
    """What a call's reports come to."""

    returned: list[Returned] = []
    waiting: list[str] = []  # files that can go when the ledger has written the reports down
    engine: str = ""  # whether containers were seen to run, or not to


def last_words(stderr: str) -> LastWords | None:
    """The container program's own report, the last in what it wrote."""
    for line in reversed(stderr.splitlines()):
        if line.startswith(LAST_WORDS):
            try:
                return msgspec.json.decode(line.removeprefix(LAST_WORDS), type=LastWords)
            except msgspec.DecodeError:
                return None
    return None


def read_reports(site: Site, room: WaitingRoom, catalog: Catalog, results: Sequence[ReportedResult]) -> Heard:
    """Hold every report against the files that came. Runs in a thread."""
    heard = Heard()
    for result in results:
        task = read_task(result.name)
        if task is None:
            continue
        reader = _Reader(site, room, catalog, task, result)
        heard.returned.append(reader.read())
        heard.waiting += reader.files.values()
        heard.engine = reader.engine or heard.engine
    return heard


class _Reader:
    """One report."""

    def __init__(self, site: Site, room: WaitingRoom, catalog: Catalog, task: TaskName, result: ReportedResult) -> None:
        self.site, self.room, self.catalog, self.task, self.result = site, room, catalog, task, result
        self.engine = ""
        self.files: dict[int, str] = {}  # output's index to the file's name
        self.lost = False  # an output was given up, or never came
        for file in result.files:
            owner = site.boinc.marks.read_output(file.name)
            if owner is None or owner[0] != task:
                continue
            if file.error or not room.path(file.name).is_file():
                self.lost = True
            else:
                self.files[owner[1]] = file.name

    def read(self) -> Returned:
        """What the ledger may believe."""
        result = self.result
        is_container = self.task.app == CONTAINER_APP
        words = last_words(result.stderr) if is_container else None
        outcome, exit_code, cause = self._end(words, is_container)
        log = self._log(words, is_container)
        report = Report(
            outcome=outcome,
            exit_code=exit_code,
            cause=cause,
            wall_seconds=min(words.wall_seconds if words else result.wall_seconds, _MOST_WALL),
            cpu_seconds=min(max(words.cpu_seconds if words else 0.0, result.cpu_seconds), _MOST_WALL),
            memory_bytes=words.memory_bytes if words else result.memory_bytes,
        )
        returned = Returned(task=self.task.task_id, report=report, log=room_for_log(0, log) or None)
        if outcome in (Outcome.SUCCESS, Outcome.FAILED):
            self._add_output(returned, is_container)
        return returned

    def _end(self, words: LastWords | None, is_container: bool) -> tuple[Outcome, int | None, str]:
        result = self.result
        if words is not None and words.outcome in _OUTCOMES:
            self.engine = boinc.MISSING if words.cause == "runner-missing" else boinc.WORKS
            return _OUTCOMES[words.outcome], words.exit_code, words.cause[:100]
        if result.exit_status in _CLIENT_SAYS:
            if is_container and result.exit_status == wire.EXIT_INIT_FAILURE:
                self.engine = boinc.MISSING
            outcome, cause = _CLIENT_SAYS[result.exit_status]
            return outcome, None, cause
        if result.state == STATE_ABORTED:
            return Outcome.ABANDONED, None, "owner-stopped"
        if result.state == STATE_DOWNLOAD_FAILED:
            return Outcome.ERROR, None, "input-missing"
        if is_container:
            # It always says how the job ended; if not, it was killed, or something else spoke in its name.
            return Outcome.ERROR, None, "report-missing"
        if result.is_success:
            return Outcome.SUCCESS, 0, ""
        if result.exit_status == 0:
            return Outcome.FAILED, 0, "output-missing"
        if 0 < result.exit_status < wire.EXIT_ABORTED_BY_CLIENT:
            return Outcome.FAILED, result.exit_status, "exit-code"
        return Outcome.ERROR, None, "engine-error"

    def _log(self, words: LastWords | None, is_container: bool) -> bytes:
        if is_container:
            log = b""
            if 1 in self.files:
                with open(self.room.path(self.files[1]), "rb") as handle:
                    log = handle.read(LOG_BYTES)
            if words is None:
                log += self.result.stderr.encode() + b"\n"
            elif words.detail and words.outcome != "success":
                log += f"[host] {words.detail}\n".encode()
        else:
            log = self.result.stderr.encode()
            log += b"\n" if log and not log.endswith(b"\n") else b""
        if self.result.message and not self.result.is_success:
            log += f"[host] {self.result.message}\n".encode()
        return log

    def _add_output(self, returned: Returned, is_container: bool) -> None:
        if self.lost:
            returned.report = Report(outcome=Outcome.ERROR, cause="output-missing")
            return
        try:
            if is_container:
                if 0 in self.files:
                    with open(self.room.path(self.files[0]), "rb") as handle:
                        self._keep(returned, handle)
            else:
                self._keep_native(returned)
        except BadResults:
            returned.report = Report(outcome=Outcome.ERROR, cause="bad-output")

    def _keep(self, returned: Returned, handle: BinaryIO) -> None:
        """Keep a results tar: within the report if it is small, in the store if not."""
        bounds = Bounds(content_bytes=self.site.settings.max_output_bytes)
        summary = verify(handle, bounds)
        handle.seek(0)
        if summary.size_bytes <= INLINE_OUTPUT_BYTES:
            returned.output = handle.read()
        else:
            self.site.files.put(output_key(returned.task, summary.digest), handle)
        returned.report = msgspec.structs.replace(
            returned.report, output_digest=summary.digest, output_bytes=summary.size_bytes
        )

    def _keep_native(self, returned: Returned) -> None:
        """Make one results tar of the files a native program left."""
        app = self.catalog.apps.get(self.task.app)
        outputs = app.outputs if app else []
        found = {outputs[index]: self.room.path(name) for index, name in self.files.items() if index < len(outputs)}
        if not found:
            return
        with _scratch(self.site) as loose, _scratch(self.site) as packed:
            _pack(found, loose)
            loose.seek(0)
            normalise(loose, packed, Bounds(content_bytes=self.site.settings.max_output_bytes))
            packed.seek(0)
            self._keep(returned, packed)


def _scratch(site: Site) -> io.BufferedRandom:
    return tempfile.TemporaryFile(dir=site.scratch)


def _pack(found: dict[str, Path], target: BinaryIO) -> None:
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, path in sorted(found.items()):
            info = tarfile.TarInfo(f"results/{name}")
            with open(path, "rb") as handle:
                info.size = path.stat().st_size
                tar.addfile(info, handle)


def md5_of(site: Site, digest: str) -> tuple[str, int]:
    """MD5 and size of content, read once. Runs in a thread. Raises FileNotFoundError."""
    found = hashlib.md5(usedforsecurity=False)
    size = 0
    for chunk in site.content.stream(digest):
        found.update(chunk)
        size += len(chunk)
    return found.hexdigest(), size


def is_engine_to_be_tried(engine: str, engine_at: float, rest_seconds: float) -> bool:
    """Whether containers may be sent: they run there, nothing is known, or it is long since they did not."""
    return engine != boinc.MISSING or time.time() - engine_at > rest_seconds
