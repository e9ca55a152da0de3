"""How a BOINC client runs a container job: the program its tasks are, from the slot to the results.

It does for one task what the agent does for many, with the agent's own runner: it makes the image ready, starts the
container, follows the client's wishes, and leaves the results, the log and a last word on how it ended. The container's
supervisor outlives this program: when the client ends, the container is suspended, and found again at the next start.
"""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from distributio.agent.boinc_slot import ABORTED, CHILD_FAILED, INIT_FAILURE, Slot
from distributio.agent.runners.contract import Handle, Image, Phase, Progress, Runner, RunnerError
from distributio.wire.native import LOG_BYTES, Assignment

LAST_WORDS = "##distributio report "
HANDLE = "container.json"
_POLL_SECONDS = 0.25
_CHECKPOINT_SECONDS = 10.0
_MOST_STARTS = 3  # where the machine was restarted in between
_STOP_SECONDS = 20.0
_TAIL_BYTES = 262_144
_MARK = b"\n[... here the log was longer than is kept ...]\n"


def read_assignment(arguments: list[str], slot: Slot) -> Assignment:
    """What is to be run: on the command line, or in a file if it is long."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--assignment":
            data = base64.urlsafe_b64decode(value)
        elif name == "--assignment-file":
            data = slot.resolve(value).read_bytes()
        else:
            continue
        assignment: Assignment = msgspec.json.decode(zlib.decompress(data), type=Assignment)
        return assignment
    raise RunnerError("spec-bad", "no assignment was given: this program is started by BOINC clients only")


class ContainerTask:
    """One task, from its start in a slot to its end."""

    def __init__(self, slot: Slot, assignment: Assignment, runner: Runner, data: Path) -> None:
        self.slot = slot
        self.assignment = assignment
        self.runner = runner
        self.data = data
        self.run_folder = slot.folder / "run"
        self.checkpoint_cpu = 0.0
        self.checkpoint_due = 0.0
        self.is_suspended = False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Only one task of this machine at a time tests the engine and loads images."""
        with open(self.data / "lock", "a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    # --- beginning ----------------------------------------------------------------------------------------------

    def begin(self) -> Handle:
        """The running container: the one that an earlier start left, or a new one."""
        with self.alone():
            seen = self.runner.probe()
            if not seen.works:
                raise RunnerError("runner-missing", seen.problem)
            self.remove_orphans()
        known = self.known()
        if known is not None:
            progress = self.runner.poll(known["handle"])
            if progress.phase in (Phase.RUNNING, Phase.SUSPENDED):
                self.runner.resume(known["handle"])
                return self.begun(known["handle"])
            if progress.phase is Phase.ENDED and progress.cause != "lost":
                return self.begun(known["handle"])
            self.runner.remove(known["handle"])
            if known["starts"] >= _MOST_STARTS:
                raise RunnerError("lost", f"it was lost {known['starts']} times; does this machine restart often?")
        with self.alone():
            self.prepare()
        inputs = {
            one.digest: self.slot.resolve(f"blobs/{one.digest.removeprefix('sha256:')}")
            for one in self.assignment.spec.inputs
        }
        handle = self.runner.start(self.assignment, inputs, self.run_folder)
        self.remember(handle, 1 if known is None else known["starts"] + 1)
        return self.begun(handle)

    def begun(self, handle: Handle) -> Handle:
        """From here on the client's wishes are heeded by `follow`."""
        self.slot.may_end_at_once = False
        return handle

    def known(self) -> dict[str, Any] | None:
        """What an earlier start of this task left."""
        try:
            found = json.loads((self.slot.folder / HANDLE).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def remember(self, handle: Handle, starts: int) -> None:
        """So that a later start finds the container."""
        partial = self.slot.folder / f"{HANDLE}.partial"
        partial.write_text(json.dumps({"handle": handle, "starts": starts}))
        partial.replace(self.slot.folder / HANDLE)

    def remove_orphans(self) -> None:
        """Containers whose task the client has forgotten: their slot is gone, or belongs to another task now."""
        for handle in self.runner.leftovers():
            slot = Path(handle.get("slot") or "/nonexistent").parent
            try:
                left = json.loads((slot / HANDLE).read_text())["handle"]["name"]
            except (OSError, ValueError, KeyError, TypeError):
                left = ""
            if left != handle.get("name"):
                with contextlib.suppress(RunnerError):  # the next task tries again
                    self.runner.remove(handle)

    def prepare(self) -> None:
        """Make the image ready, from the layers that the client fetched."""
        manifest = self.assignment.image_manifest
        if self.runner.has_image(manifest):
            return
        layout = self.slot.folder / "layout"
        blobs = layout / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        for link in (self.slot.folder / "blobs").iterdir():
            place = blobs / link.name
            if not place.is_symlink():
                place.symlink_to(self.slot.resolve(f"blobs/{link.name}"))
        try:
            self.runner.prepare(Image(manifest_digest=manifest, layout=layout))
        finally:
            shutil.rmtree(layout, ignore_errors=True)

    # --- following ----------------------------------------------------------------------------------------------

    def follow(self, handle: Handle) -> Progress | None:
        """Until it has ended; None if the client wanted this program to end first."""
        while True:
            if self.slot.abort.is_set():
                self.stop(handle)
                return None
            if self.slot.quit.is_set():
                self.pause_for_later(handle)
                return None
            self.heed_suspend(handle)
            progress = self.runner.poll(handle)
            if progress.phase in (Phase.ENDED, Phase.LOST):
                return progress
            if not self.is_suspended:
                self.tell(progress)
            time.sleep(_POLL_SECONDS)

    def heed_suspend(self, handle: Handle) -> None:
        """Suspend or resume the container as the client wants."""
        wanted = self.slot.suspended.is_set()
        if wanted and not self.is_suspended:
            self.is_suspended = self.runner.suspend(handle)
        elif self.is_suspended and not wanted:
            self.runner.resume(handle)
            self.is_suspended = False

    def tell(self, progress: Progress) -> None:
        """Say how far it is. A suspended container loses nothing, so every moment is as good as a checkpoint."""
        now = time.monotonic()
        if now >= self.checkpoint_due:
            self.checkpoint_due = now + _CHECKPOINT_SECONDS
            self.checkpoint_cpu = progress.cpu_seconds
        self.slot.report(progress.cpu_seconds, self.checkpoint_cpu, progress.fraction or 0.0)

    def pause_for_later(self, handle: Handle) -> None:
        """The client ends, or wants the memory: the container waits for the next start, if it can be made to."""
        if not self.runner.suspend(handle):
            self.stop(handle)
            (self.slot.folder / HANDLE).unlink(missing_ok=True)

    def stop(self, handle: Handle) -> None:
        """End the container and leave nothing of it."""
        self.runner.stop(handle, at_once=True)
        until = time.monotonic() + _STOP_SECONDS
        while self.runner.poll(handle).phase in (Phase.RUNNING, Phase.SUSPENDED) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        self.runner.remove(handle)

    # --- ending -------------------------------------------------------------------------------------------------

    def conclude(self, handle: Handle, progress: Progress) -> dict[str, Any]:
        """Leave results and log where the client takes them from; return the last words."""
        words = msgspec.to_builtins(progress)
        try:
            if progress.outcome != "error":
                self.leave_results(handle)
        except RunnerError as error:
            fault = "failed" if error.code == "results-bad" else "error"
            words |= {"outcome": fault, "cause": error.code, "detail": str(error)}
        self.leave_log(handle)
        try:
            self.runner.remove(handle)
        except RunnerError as error:
            words["detail"] = f"{words['detail']} {error}".strip()  # the next task removes it
        return words_of(**{name: words[name] for name in _WORDS})

    def leave_results(self, handle: Handle) -> None:
        """Write the results tar where the client expects that output; nothing where there are no results."""
        target = self.slot.resolve("results.tar")
        with open(target, "wb") as output:
            count = self.runner.collect(handle, output)
            is_empty = not output.tell()
        if not count and is_empty:
            target.unlink()

    def leave_log(self, handle: Handle) -> None:
        """Write the log where the client expects it: all of it, or its beginning and its end."""
        head = self.runner.read_log(handle, 0, LOG_BYTES - _TAIL_BYTES - len(_MARK))
        rest = b""
        offset = len(head)
        dropped = False
        while part := self.runner.read_log(handle, offset, 1 << 20):
            offset += len(part)
            rest += part
            if len(rest) > _TAIL_BYTES:
                dropped, rest = True, rest[-_TAIL_BYTES:]
        if head:
            self.slot.resolve("log.txt").write_bytes(head + (_MARK if dropped else b"") + rest)


_WORDS = ("outcome", "exit_code", "cause", "detail", "wall_seconds", "cpu_seconds", "memory_bytes")


def words_of(outcome: str, cause: str = "", detail: str = "", **more: Any) -> dict[str, Any]:
    """How it ended, as the site reads it."""
    return {"outcome": outcome, "cause": cause, "detail": " ".join(detail.split())[:1000], **more}


def say(words: dict[str, Any]) -> None:
    """The last words go to the standard error, which the client sends along with its report."""
    sys.stderr.write(f"{LAST_WORDS}{json.dumps(words)}\n")
    sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Run the task in the slot that is the current folder."""
    slot = Slot(Path.cwd())
    slot.listen()
    status = 0
    try:
        assignment = read_assignment(arguments, slot)
        data = slot.project_folder / "distributio"
        data.mkdir(exist_ok=True)
        task = ContainerTask(slot, assignment, _runner(data), data)
        handle = task.begin()
        progress = task.follow(handle)
        if progress is None:
            if slot.abort.is_set():
                slot.finish(ABORTED)
            os._exit(0)
        words = task.conclude(handle, progress)
    except RunnerError as error:
        missing = error.code == "runner-missing"
        words = words_of("abandoned" if missing else "error", error.code, str(error))
    say(words)
    if words["outcome"] not in ("success", "failed"):
        status = INIT_FAILURE if words["cause"] == "runner-missing" else CHILD_FAILED
    slot.finish(status)
    return status


def _runner(data: Path) -> Runner:
    from distributio.agent.runners.container import ContainerRunner

    environment = dict(os.environ)
    environment.pop("LD_LIBRARY_PATH", None)  # the client's own, which an engine must not load from
    return ContainerRunner(data, environment=environment)
