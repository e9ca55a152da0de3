"""A runner that runs nothing, convincingly: for trying a site and for testing agents without an engine.

It understands a few commands, and what comes of them depends on the clock alone: `echo WORDS`, `sleep SECONDS`, `exit
CODE`, `write PATH TEXT`, `progress FRACTION`, `fail-host`; several may follow one another with `;` between. Its tasks
live in files, so they go on, as far as anybody can see, while no agent runs.
"""

import hashlib
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct, structs

from distributio.agent.runners import archive
from distributio.agent.runners.contract import Capabilities, Handle, Image, Phase, Progress, RunnerError
from distributio.wire.native import Assignment, Limits
from distributio.wire.results_tar import Bounds, normalise

_STATE = "fake.json"
_MEMORY_BYTES = 1 << 20


class _Moment(Struct, frozen=True, kw_only=True):
    """Something that happens `at` seconds after the beginning."""

    at: float
    log: str = ""
    path: str = ""  # of a result that is written
    text: str = ""
    fraction: float | None = None


class _Task(Struct, frozen=True, kw_only=True):
    """A task: all that will happen, and what was done to it from outside. Instants are the clock's."""

    name: str
    moments: list[_Moment]
    end_at: float  # after the beginning, as are the moments
    outcome: str
    exit_code: int | None
    cause: str
    detail: str
    began_at: float
    log_bytes: int
    suspended_at: float | None = None
    suspended_seconds: float = 0.0

    def elapsed(self, now: float) -> float:
        """How long it has run."""
        until = now if self.suspended_at is None else self.suspended_at
        return max(0.0, until - self.began_at - self.suspended_seconds)

    def happened(self, now: float) -> list[_Moment]:
        """What has happened so far."""
        reached = min(self.elapsed(now), self.end_at)
        return [moment for moment in self.moments if moment.at <= reached]

    def log(self, now: float) -> bytes:
        """What is in the log so far."""
        return "".join(moment.log for moment in self.happened(now)).encode()[: self.log_bytes]


def _imagine(command: list[str], limits: Limits, name: str, now: float) -> _Task:
    """All that will happen to a command."""
    moments: list[_Moment] = []
    at, logged, written = 0.0, 0, 0
    outcome, exit_code, cause, detail = "success", 0, "", ""
    for step in _steps(command):
        verb, words = step[0], step[1:]
        if verb == "sleep":
            at += float(words[0])
        elif verb == "echo":
            line = " ".join(words) + "\n"
            logged += len(line.encode())
            moments.append(_Moment(at=at, log=line))
        elif verb == "write":
            written += len(words[1].encode())
            moments.append(_Moment(at=at, path=words[0], text=words[1]))
        elif verb == "progress":
            moments.append(_Moment(at=at, fraction=float(words[0])))
        elif verb == "exit":
            exit_code = int(words[0])
            outcome, cause = ("success", "") if exit_code == 0 else ("failed", "exit-code")
            detail = f"it ended with exit code {exit_code}"
            break
        elif verb == "fail-host":
            outcome, exit_code, cause, detail = "error", 0, "engine-error", "this host was asked to fail"
            break
        else:
            outcome, exit_code, cause, detail = "failed", 127, "command-not-found", f"{verb!r} is not a command here"
            break
    over = _over_limit(at, logged, written, limits)
    if over:
        outcome, cause, detail = "failed", over, "it hit a limit"
        at = min(at, limits.wall_seconds)
    return _Task(
        name=name,
        moments=moments,
        end_at=at,
        outcome=outcome,
        exit_code=None if over or outcome == "error" else exit_code,
        cause=cause,
        detail=detail,
        began_at=now,
        log_bytes=limits.log_bytes,
    )


def _over_limit(seconds: float, logged: int, written: int, limits: Limits) -> str:
    """The limit that a command would hit, or nothing."""
    if seconds > limits.wall_seconds:
        return "wall-limit"
    if logged > limits.log_bytes:
        return "log-limit"
    return "disk-limit" if written > limits.disk_bytes else ""


def _steps(command: list[str]) -> Iterator[list[str]]:
    """The commands between the semicolons."""
    step: list[str] = []
    for word in [*command, ";"]:
        if word != ";":
            step.append(word)
        elif step:
            yield step
            step = []


class FakeRunner:
    """Runs nothing. `data` is the agent's own folder; `name` is what it claims to be; `clock` tells the time."""

    def __init__(self, data: Path, *, name: str = "fake", clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.clock = clock
        self.tasks = data / "fake" / "tasks"
        self.images = data / "fake" / "images"
        self.tasks.mkdir(parents=True, exist_ok=True)
        self.images.mkdir(parents=True, exist_ok=True)

    def probe(self) -> Capabilities:
        """There is nothing to test."""
        return Capabilities(works=True, engine="fake", missing=["everything: nothing is run at all"])

    # --- images -----------------------------------------------------------------------------------------------

    def _image(self, manifest_digest: str) -> Path:
        """Where a prepared image is noted."""
        return self.images / archive.blob_path(Path(), manifest_digest).name

    def has_image(self, manifest_digest: str) -> bool:
        """Whether the image was prepared."""
        return self._image(manifest_digest).exists()

    def prepare(self, image: Image) -> None:
        """Check every digest of the image, as a real runner would, and note that it was here."""
        description = archive.describe(image.layout, image.manifest_digest)
        with open(os.devnull, "wb") as nowhere:
            archive.write_archive(description, image.layout, nowhere)
        self._image(image.manifest_digest).touch()

    def forget_image(self, manifest_digest: str) -> None:
        """Note that the image is gone."""
        self._image(manifest_digest).unlink(missing_ok=True)

    # --- tasks ------------------------------------------------------------------------------------------------

    def start(self, assignment: Assignment, inputs: dict[str, Path], slot: Path) -> Handle:
        """Begin."""
        if assignment.image_manifest and not self.has_image(assignment.image_manifest):
            raise RunnerError("image-missing", f"the image {assignment.image_manifest} has not been prepared")
        for one in assignment.spec.inputs:
            if one.digest not in inputs or not inputs[one.digest].is_file():
                raise RunnerError("input-missing", f"the input {one.digest} is not here; fetch it again")
        slot.mkdir(parents=True, exist_ok=True)
        now = self.clock()
        name = f"fake-{assignment.task}-{hashlib.sha256(f'{slot}{now}'.encode()).hexdigest()[:6]}"
        task = _imagine(assignment.spec.command, assignment.spec.limits, name, now)
        self._save(slot, task)
        (self.tasks / name).write_text(f"{assignment.task} {slot}")
        return {"runner": self.name, "task": assignment.task, "name": name, "slot": str(slot)}

    def _save(self, slot: Path, task: _Task) -> None:
        """Write a task down, so that readers see the old or the new."""
        partial = slot / (_STATE + ".partial")
        partial.write_bytes(msgspec.json.encode(task))
        partial.replace(slot / _STATE)

    def _task(self, handle: Handle) -> _Task | None:
        """The task of a handle, if it is known."""
        try:
            task = msgspec.json.decode((Path(handle["slot"]) / _STATE).read_bytes(), type=_Task)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return task if task.name == handle["name"] else None

    def poll(self, handle: Handle) -> Progress:
        """Say how it stands by the clock."""
        task, now = self._task(handle), self.clock()
        if task is None:
            return Progress(phase=Phase.LOST, cause="lost", detail="nothing is known of it here")
        elapsed = task.elapsed(now)
        fractions = [moment.fraction for moment in task.happened(now) if moment.fraction is not None]
        running = Progress(
            phase=Phase.RUNNING if task.suspended_at is None else Phase.SUSPENDED,
            fraction=fractions[-1] if fractions else None,
            wall_seconds=min(elapsed, task.end_at),
            cpu_seconds=min(elapsed, task.end_at),
            memory_bytes=_MEMORY_BYTES,
        )
        if elapsed < task.end_at:
            return running
        return structs.replace(
            running,
            phase=Phase.ENDED,
            outcome=task.outcome,
            exit_code=task.exit_code,
            cause=task.cause,
            detail=task.detail,
        )

    def read_log(self, handle: Handle, offset: int, most: int) -> bytes:
        """What was echoed so far."""
        task = self._task(handle)
        return b"" if task is None else task.log(self.clock())[offset : offset + most]

    def suspend(self, handle: Handle) -> bool:
        """Stop its clock."""
        task, now = self._task(handle), self.clock()
        if task is None or task.elapsed(now) >= task.end_at:
            return False
        if task.suspended_at is None:
            self._save(Path(handle["slot"]), structs.replace(task, suspended_at=now))
        return True

    def resume(self, handle: Handle) -> None:
        """Let its clock go on."""
        task, now = self._task(handle), self.clock()
        if task is None or task.suspended_at is None:
            return
        paused = task.suspended_seconds + now - task.suspended_at
        self._save(Path(handle["slot"]), structs.replace(task, suspended_at=None, suspended_seconds=paused))

    def stop(self, handle: Handle, *, at_once: bool = False) -> None:
        """End it now."""
        task, now = self._task(handle), self.clock()
        if task is None or task.elapsed(now) >= task.end_at:
            return
        stopped = structs.replace(
            task,
            end_at=task.elapsed(now),
            outcome="error",
            exit_code=None,
            cause="stopped",
            detail="it was stopped on request",
        )
        self._save(Path(handle["slot"]), stopped)

    def collect(self, handle: Handle, output: BinaryIO) -> int:
        """Write what was written, in the canonical form."""
        task, now = self._task(handle), self.clock()
        if task is None or task.elapsed(now) < task.end_at:
            raise RunnerError("not-ended", "results are copied out after the task has ended; poll it first")
        written = {moment.path: moment.text.encode() for moment in task.happened(now) if moment.path}
        if not written or task.cause == "disk-limit":
            return 0
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for path, content in written.items():
                info = tarfile.TarInfo(f"results/{path}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        raw.seek(0)
        return normalise(raw, output, Bounds()).files

    def remove(self, handle: Handle) -> None:
        """Forget it."""
        if self._task(handle) is not None:
            (Path(handle["slot"]) / _STATE).unlink(missing_ok=True)
        (self.tasks / Path(handle["name"]).name).unlink(missing_ok=True)

    def leftovers(self) -> Iterator[Handle]:
        """The tasks that were not removed."""
        for note in sorted(self.tasks.iterdir()):
            number, _, slot = note.read_text().partition(" ")
            yield {"runner": self.name, "task": int(number), "name": note.name, "slot": slot}
