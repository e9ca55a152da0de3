"""How one step of one task is carried out: fetch, start, follow, suspend, resume, collect, upload, give back."""

import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from msgspec.structs import replace

from distributio.agent.cache import Cache
from distributio.agent.folder import Folder
from distributio.agent.holdings import Holdings
from distributio.agent.logs import INLINE_BYTES, LogStream, Read
from distributio.agent.runners.contract import Handle, Phase, Progress, Runner, RunnerError
from distributio.agent.site import Site, SiteAway
from distributio.agent.transfers import Stopped, TransferFailed, file_digest, upload
from distributio.agent.work import Held, Stage
from distributio.wire.native import INLINE_OUTPUT_BYTES, TaskReport

_FIRST_LOOK_SECONDS = 0.01
_LOOK_EVERY_SECONDS = 0.2
_FAULTS_BORNE = 8  # of the engine in a row, while a task runs
_FAULTS_OF_THE_COMMAND = frozenset({"results-bad"})  # of what runners say; all else is this host's
_RUNS = frozenset({Stage.RUNNING, Stage.SUSPENDED})

log = logging.getLogger(__name__)

Spawn = Callable[..., None]  # a name, what to call, and its arguments: on a thread of its own


class Carrier:
    """Carries out steps. Each method is one step, called on a thread of its own, and leaves the task at its next stage."""

    def __init__(
        self,
        folder: Folder,
        holdings: Holdings,
        cache: Cache,
        site: Site,
        runners: Mapping[str, Runner],
        spawn: Spawn,
        draw: random.Random,
    ) -> None:
        self._folder = folder
        self._holdings = holdings
        self._cache = cache
        self._site = site
        self._runners = runners
        self._spawn = spawn
        self._draw = draw
        self._streams: dict[int, LogStream] = {}
        self._recovered = set(holdings.all)
        self.stream_logs = True
        self.typical_seconds: float | None = None
        self.cpu_seconds: dict[int, float] = {}  # of running tasks, as far as the runner says

    def runner(self, held: Held) -> Runner | None:
        """The runner the task asks for, if it is here."""
        return self._runners.get(held.assignment.spec.runner)

    def fetch(self, task: int) -> None:
        """Bring everything the task needs."""
        with self._holdings.step(task):
            held = self._holdings.get(task)
            if held is None or held.stage is not Stage.FETCHING:
                return
            runner = self.runner(held)
            if runner is None:
                name = held.assignment.spec.runner
                self._end(task, {Stage.FETCHING}, "error", "runner-missing", f"this host has no {name!r} runner")
                return
            try:
                self._cache.bring(held.assignment, runner, lambda: not self._holdings.is_at(task, {Stage.FETCHING}))
            except Stopped:
                return
            except SiteAway as error:
                log.info("%s: waits for the site: %s", label(held), error)
                self._holdings.move(task, {Stage.FETCHING}, Stage.ASSIGNED)
                self._holdings.failed(task)
            except (TransferFailed, RunnerError) as error:
                self._end(task, {Stage.FETCHING}, "error", error.code, str(error))
            except OSError as error:
                self._end(
                    task, {Stage.FETCHING}, "error", "host-disk-full", f"what it needs cannot be kept here: {error}"
                )
            else:
                self._holdings.move(task, {Stage.FETCHING}, Stage.READY)

    def start(self, task: int) -> None:
        """Have the runner begin, and follow it to its end."""
        with self._holdings.step(task):
            held = self._holdings.get(task)
            if held is None or held.stage is not Stage.STARTING:
                return
            slot = self._folder.slot(task)
            runner = self._runners[held.assignment.spec.runner]
            try:
                shutil.rmtree(slot, ignore_errors=True)
                slot.mkdir(parents=True)
                handle = runner.start(held.assignment, self._cache.inputs(held.assignment), slot)
            except RunnerError as error:
                self._end(task, {Stage.STARTING}, "error", error.code, str(error))
                return
            except OSError as error:
                self._end(task, {Stage.STARTING}, "error", "host-disk-full", f"it cannot be started here: {error}")
                return
            # Whoever stops the task meanwhile waits for this step, and then needs the handle.
            self._holdings.note(task, handle=handle)
            running = self._holdings.move(task, {Stage.STARTING}, Stage.RUNNING)
        if running is not None:
            log.info("%s: running", label(running))
            self.follow(task)

    def follow(self, task: int) -> None:
        """Stream the log and wait for the end."""
        pause, faults = _FIRST_LOOK_SECONDS, 0
        while (held := self._holdings.get(task)) is not None and held.stage in _RUNS:
            runner, handle = self.runner(held), held.handle
            if runner is None or handle is None:
                self._end(task, _RUNS, "abandoned", "host-restarted", "the runner it ran with is gone")
                return
            try:
                progress = runner.poll(handle)
                self._note(held, progress)
                if progress.phase in (Phase.ENDED, Phase.LOST):
                    self._ended(held, progress)
                    return
                more = self.stream_logs and self.stream(held).push(_reader(runner, handle))
                faults = 0
            except RunnerError as error:
                faults += 1
                if faults > _FAULTS_BORNE:
                    self._end(task, _RUNS, "error", error.code, str(error))
                    return
                log.warning("%s: %s", label(held), error)
                more = False
            if not more:
                time.sleep(pause)
            pause = min(pause * 1.25, _LOOK_EVERY_SECONDS * (1 + faults * 5))

    def suspend(self, task: int) -> None:
        """Let the processor go. Where the runner cannot, another host shall have the task."""
        with self._holdings.step(task):
            held = self._holdings.get(task)
            if held is None or held.stage is not Stage.RUNNING:
                return
            runner, handle = self.runner(held), held.handle
            if runner is None or handle is None:
                return
            try:
                done = runner.suspend(handle)
            except RunnerError as error:
                log.warning("%s: cannot be suspended: %s", label(held), error)
                self._holdings.failed(task)
                return
            if done:
                self._holdings.move(task, {Stage.RUNNING}, Stage.SUSPENDED)
                log.info("%s: suspended", label(held))
                return
        if self.release(task, "owner-needs-machine"):
            self.clear(task)

    def resume(self, task: int) -> None:
        """Go on."""
        with self._holdings.step(task):
            held = self._holdings.get(task)
            if held is None or held.stage is not Stage.SUSPENDED:
                return
            runner, handle = self.runner(held), held.handle
            if runner is None or handle is None:
                return
            try:
                runner.resume(handle)
            except RunnerError as error:
                log.warning("%s: cannot go on: %s", label(held), error)
                self._holdings.failed(task)
                return
            self._holdings.move(task, {Stage.SUSPENDED}, Stage.RUNNING)
            log.info("%s: goes on", label(held))

    def collect(self, task: int) -> None:
        """Take the output and the rest of the log from the runner, and have it clean up."""
        with self._holdings.step(task):
            held = self._holdings.get(task)
            if held is None or held.stage is not Stage.COLLECTING or held.report is None:
                return
            runner, handle, report = self.runner(held), held.handle, held.report
            if runner is not None and handle is not None:
                try:
                    report = self._take_output(held, runner, handle, report)
                    rest = self._take_log(held, runner, handle)
                except RunnerError as error:
                    outcome = "failed" if error.code in _FAULTS_OF_THE_COMMAND else "error"
                    report = replace(report, outcome=outcome, cause=error.code, detail=str(error))
                    rest = 0
                except OSError as error:
                    log.warning("%s: its output cannot be kept yet: %s", label(held), error)
                    self._holdings.move(task, {Stage.COLLECTING}, Stage.ENDED)
                    self._holdings.failed(task)
                    return
            stream = self.stream(held)
            log_fits = stream.is_full or (stream.is_sure and rest <= INLINE_BYTES)
            fits = report.output_bytes <= INLINE_OUTPUT_BYTES and log_fits
            stage = Stage.REPORTING if fits else Stage.COLLECTED
            sent = stream.sent
            self._holdings.move(task, {Stage.COLLECTING}, stage, durable=True, report=report, log_sent=sent)
            if runner is not None and handle is not None:
                self._remove(held, runner, handle)
        self._tell_end(held, report)

    def upload(self, task: int) -> None:
        """Bring a large output and the rest of a long log to the site."""
        with self._holdings.step(task):
            held = self._holdings.get(task)
            if held is None or held.stage is not Stage.UPLOADING or held.report is None:
                return
            report = held.report
            try:
                self.stream(held).drain(_file_reader(self._folder.log(task), held.log_sent), INLINE_BYTES)
                if report.output_bytes > INLINE_OUTPUT_BYTES:
                    upload(
                        self._site,
                        f"/api/v1/host/tasks/{task}/output",
                        self._folder.output(task),
                        report.output_digest,
                        lambda: not self._holdings.is_at(task, {Stage.UPLOADING}),
                    )
            except Stopped:
                return
            except SiteAway as error:
                log.info("%s: its output waits for the site: %s", label(held), error)
                self._holdings.move(task, {Stage.UPLOADING}, Stage.COLLECTED)
                self._holdings.failed(task)
                return
            except TransferFailed as error:
                log.warning("%s: %s", label(held), error)
                report = replace(
                    report, outcome="error", cause=error.code, detail=str(error), output_digest="", output_bytes=0
                )
            self._holdings.move(task, {Stage.UPLOADING}, Stage.REPORTING, durable=True, report=report)

    def release(self, task: int, cause: str) -> bool:
        """Decide that another host shall have the task, or nobody where the site wants it no more; `clear` does the
        rest. False if it is being cleared already."""
        held = self._holdings.get(task)
        if held is None or held.stage is Stage.STOPPING:
            return False
        report = TaskReport(task=task, outcome="abandoned", cause=cause)
        sent = self.stream(held).sent
        if self._holdings.move(task, {held.stage}, Stage.STOPPING, report=report, log_sent=sent) is None:
            return self.release(task, cause)  # it moved on meanwhile
        log.info("%s: %s", label(held), f"given back ({cause})" if held.wanted else "no longer wanted, stopped")
        return True

    def clear(self, task: int) -> None:
        """Leave nothing of a task that is stopping; report it if the site still wants to hear of it."""
        with self._holdings.step(task):
            held = self._holdings.get(task)
            if held is None or held.stage is not Stage.STOPPING:
                return
            runner = self.runner(held)
            if runner is not None and held.handle is not None:
                try:
                    runner.stop(held.handle, at_once=True)
                except RunnerError as error:
                    log.warning("%s: cannot be stopped: %s", label(held), error)
                self._remove(held, runner, held.handle)
            self.cpu_seconds.pop(task, None)
            self._folder.remove_task(task)
            if held.wanted:
                self._holdings.move(task, {Stage.STOPPING}, Stage.REPORTING, durable=True, handle=None)
                return
            self.forget(task)

    def forget(self, task: int) -> threading.Lock:
        """The site is done with it: it is held no more. Returns the lock under which `clean` may follow."""
        step = self._holdings.step(task)
        self._streams.pop(task, None)
        self._holdings.drop([task])
        return step

    def clean(self, task: int, step: threading.Lock) -> None:
        """Remove the files of a task that is held no more, once the runner is through with it."""
        with step:
            self._folder.remove_task(task)

    def complete_report(self, held: Held) -> TaskReport:
        """The report with the bytes that travel inside it."""
        report = held.report or TaskReport(task=held.task, outcome="error", cause="report-missing")
        if 0 < report.output_bytes <= INLINE_OUTPUT_BYTES:
            report = replace(report, output=self._folder.output(held.task).read_bytes())
        path = self._folder.log(held.task)
        if not path.exists():
            return replace(report, log_offset=self.stream(held).sent)
        offset, rest = self.stream(held).rest(_file_reader(path, held.log_sent))
        return replace(report, log=rest or None, log_offset=offset)

    def stream(self, held: Held) -> LogStream:
        """The task's log on its way."""
        stream = self._streams.get(held.task)
        if stream is None:
            stream = self._streams[held.task] = LogStream(
                self._site, held.task, held.log_sent, self._draw, is_sure=held.task not in self._recovered
            )
        return stream

    def _note(self, held: Held, progress: Progress) -> None:
        if progress.fraction is not None:
            self._holdings.fractions[held.task] = progress.fraction
        self.cpu_seconds[held.task] = progress.cpu_seconds

    def _ended(self, held: Held, progress: Progress) -> None:
        self.cpu_seconds.pop(held.task, None)
        if progress.phase is Phase.LOST:
            cause = "host-restarted" if held.task in self._recovered else "lost-on-host"
            self._end(held.task, _RUNS, "abandoned", cause, "its container or process is gone")
            return
        seconds = progress.wall_seconds
        self.typical_seconds = seconds if self.typical_seconds is None else self.typical_seconds * 0.7 + seconds * 0.3
        report = TaskReport(
            task=held.task,
            outcome=progress.outcome,
            exit_code=progress.exit_code,
            cause=progress.cause,
            detail=progress.detail,
            wall_seconds=progress.wall_seconds,
            cpu_seconds=progress.cpu_seconds,
            memory_bytes=progress.memory_bytes,
        )
        self._holdings.move(held.task, _RUNS, Stage.ENDED, report=report, log_sent=self.stream(held).sent)

    def _end(self, task: int, came_from: Collection[Stage], outcome: str, cause: str, detail: str) -> None:
        """The task ends without output. What the runner may have of it is cleared on the way."""
        report = TaskReport(task=task, outcome=outcome, cause=cause, detail=detail)
        held = self._holdings.move(task, came_from, Stage.STOPPING, report=report)
        if held is not None:
            log.warning("%s: %s (%s): %s", label(held), outcome, cause, detail)
            self._spawn("clear", self.clear, task)

    def _take_output(self, held: Held, runner: Runner, handle: Handle, report: TaskReport) -> TaskReport:
        path = self._folder.output(held.task)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            runner.collect(handle, file)
            file.flush()
            written = file.tell()
            if written:
                os.fsync(file.fileno())
        if not written:
            part.unlink()
            return report
        part.replace(path)
        return replace(report, output_digest=file_digest(path), output_bytes=written)

    def _take_log(self, held: Held, runner: Runner, handle: Handle) -> int:
        """Keep what of the log was not sent; return how many bytes that is."""
        path = self._folder.log(held.task)
        stream = self.stream(held)
        path.parent.mkdir(parents=True, exist_ok=True)
        offset = stream.sent
        with path.open("wb") as file:
            while piece := runner.read_log(handle, offset, 1 << 20):
                file.write(piece)
                offset += len(piece)
        return offset - stream.sent

    def _remove(self, held: Held, runner: Runner, handle: Handle) -> None:
        try:
            runner.remove(handle)
        except RunnerError as error:
            log.warning("%s: leaves something behind, removed at the next start: %s", label(held), error)
        shutil.rmtree(self._folder.slot(held.task), ignore_errors=True)

    def _tell_end(self, held: Held, report: TaskReport) -> None:
        took = f"in {report.wall_seconds:.1f} s"
        match report.outcome:
            case "success":
                log.info("%s: done %s", label(held), took)
            case "failed":
                why = report.cause or f"exit code {report.exit_code}"
                log.info("%s: failed %s (%s)", label(held), took, why)
            case _:
                log.warning("%s: %s (%s) %s", label(held), report.outcome, report.cause, report.detail)


def label(held: Held) -> str:
    """How a task is called in lines for people."""
    return f"task {held.task} (job {held.assignment.job})"


def _reader(runner: Runner, handle: Handle) -> Read:
    return lambda offset, most: runner.read_log(handle, offset, most)


def _file_reader(path: Path, base: int) -> Callable[[int, int], bytes]:
    def read(offset: int, most: int) -> bytes:
        if not path.exists():
            return b""
        with path.open("rb") as file:
            file.seek(max(0, offset - base))
            return file.read(most)

    return read
