"""One container as its supervisor sees it: what can be asked of the engine and of the kernel about it, and done to it.

Only the standard library is imported: the supervisor of every task loads this.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Any

from distributio.agent.runners import slot as slots
from distributio.agent.runners import usage

ABANDONED = "the engine's own process for this container was killed"
_LEAST_FREE_BYTES = 1 << 30  # on the host's own disk, or a twentieth of it if that is less
_ENGINE_TIMEOUT = 120.0
_KILL_AGAIN_SECONDS = 5.0


class EngineFault(Exception):
    """The engine refused; the message is its own."""


class Contained:
    """A task's container, by its plan."""

    def __init__(self, slot: Path) -> None:
        self.slot = slot
        self.plan: dict[str, Any] = json.loads((slot / slots.PLAN).read_text())
        self.name: str = self.plan["name"]
        self.pid = 0
        self.pidfd = -1  # of the first process: -1 before it is seen, -2 after its end
        self.monitor = 0  # the engine's process that watches it
        self.groups: usage.Cgroups | None = None
        self.seen = usage.Usage()
        self.disk: list[str] | None = None
        self.detail = ""
        self.kill_at: float | None = None
        self.helper: usage.Inside | None = None

    # --- the engine -------------------------------------------------------------------------------------------

    def engine(self, *arguments: str, feed: IO[bytes] | None = None, timeout: float = _ENGINE_TIMEOUT) -> str:
        """Run one command of the engine and return what it prints."""
        try:
            done = subprocess.run(
                [*self.plan["command"], *arguments],
                env=self.plan["environment"],
                stdin=feed if feed is not None else subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise EngineFault(f"the engine did not answer `{arguments[0]}` within {timeout:.0f} seconds") from late
        if done.returncode:
            raise EngineFault(done.stderr.decode(errors="replace").strip() or f"`{arguments[0]}` failed silently")
        return done.stdout.decode(errors="replace")

    def record(self) -> dict[str, Any]:
        """The engine's own record of the container; empty when there is none."""
        try:
            found = json.loads(self.engine("inspect", "--type", "container", self.name))
        except (EngineFault, ValueError):
            return {}
        return found[0] if isinstance(found, list) and found else {}

    def is_alive(self) -> bool:
        """Whether the container runs on although nobody reads its log."""
        state = self.record().get("State", {})
        pid = int(state.get("Pid") or 0)
        return bool(state.get("Running") or state.get("Paused")) and (not pid or os.path.exists(f"/proc/{pid}"))

    def attach_log(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start an engine command that writes the container's output straight to the log file, as long as it runs."""
        with (self.slot / slots.LOG).open("ab") as log:
            return subprocess.Popen(
                [*self.plan["command"], *arguments],
                env=self.plan["environment"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: os.nice(self.plan["nice"]) and None,
            )

    # --- the first process ------------------------------------------------------------------------------------

    def watch_process(self) -> None:
        """Hold on to the container's first process, so that its end is seen at once and its counters are still
        there."""
        if not self.pid:
            text = ""
            with contextlib.suppress(FileNotFoundError):  # the engine has not come so far
                text = (self.slot / slots.PIDFILE).read_text().strip()
            if self.plan["kind"] == "docker":
                text = self.docker_pid()
            if not text.isdigit() or text == "0":
                return
            self.pid = int(text)
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            return  # it has ended already, or runs in a virtual machine of the engine's
        self.groups = usage.Cgroups(self.pid)

    def docker_pid(self) -> str:
        """The first process of a container of docker's, if that runs under this kernel and not in a virtual machine."""
        record = self.record()
        pid = str(record.get("State", {}).get("Pid") or "0")
        groups = Path(f"/proc/{pid}/cgroup")
        return pid if groups.exists() and str(record.get("Id", "?")) in groups.read_text() else "0"

    def sample(self) -> None:
        """See what the container uses."""
        if self.groups is not None and not self.groups.folders:
            self.groups = usage.Cgroups(self.pid)
        if self.groups is not None:
            self.groups.update(self.seen)

    def is_abandoned(self) -> bool:
        """Whether the engine's process that watches the container, and would learn how it ends, has gone before it."""
        if self.pidfd < 0:
            return False
        pid, name = usage.parent(self.pid)
        if name == "conmon":
            self.monitor = pid
        return bool(self.monitor and pid and pid != self.monitor)

    def kill(self) -> None:
        """Kill the container, all of it, and again later should it not be gone by then."""
        self.kill_at = time.monotonic() + _KILL_AGAIN_SECONDS
        if self.pidfd >= 0 and not (self.slot / slots.SUSPENDED).exists():
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)  # type: ignore[attr-defined,unused-ignore]
                return
            except ProcessLookupError:
                return
            except PermissionError:
                if self.inside("kill", str(self.pid)) is not None:
                    return
        try:
            self.engine("kill", "--signal", "KILL", self.name)
        except EngineFault as refusal:
            self.detail = self.detail or str(refusal)

    # --- memory and disk --------------------------------------------------------------------------------------

    def memory_exceeded(self) -> bool:
        """Whether it uses too much memory; only asked of us where the kernel does not see to it."""
        if self.plan["memory_held"] or self.pidfd < 0:
            return False
        limit = self.plan["memory_bytes"]
        if usage.update_from_processes(self.seen, self.pid) <= limit:
            return False
        # Shared pages were counted once for each process: count again, with the rights that takes.
        exact = self.inside("memory", str(self.pid))
        return exact is None or exact > limit

    def inside(self, verb: str, *arguments: str) -> int | None:
        """Have something done inside the engine's user namespace; None when that is not possible."""
        if not self.plan["pause_file"]:
            return None
        if self.helper is None:
            pause = Path(self.plan["pause_file"])
            if not pause.exists():
                return None
            self.helper = usage.Inside(int(pause.read_text()))
        return self.helper.ask(verb, *arguments)

    def look(self, verb: str, *folders: str) -> int | None:
        """Measure folders from here, or else from inside; None if neither can."""
        try:
            return usage.answer(verb, list(folders))
        except FileNotFoundError:
            return 0
        except OSError:
            return self.inside(verb, *folders)

    def disk_exceeded(self) -> str:
        """Whether it has written too much, into its volumes and its own layer."""
        if self.disk is None:
            self.disk = written_folders(self.record(), layer=self.plan["writable_root"])
        if not self.disk:
            return ""
        size = self.look("size", *self.disk)
        if size is None:
            self.detail = "what it wrote cannot be measured, so it was stopped"
            return "disk-limit"
        return "disk-limit" if size > self.plan["disk_bytes"] else ""

    def host_disk_is_full(self) -> bool:
        """Whether the host itself runs out of disk, whoever filled it."""
        for place in (self.slot, Path(self.plan["storage"])):
            disk = os.statvfs(place)
            if disk.f_bavail * disk.f_frsize < min(_LEAST_FREE_BYTES, disk.f_blocks * disk.f_frsize // 20):
                self.detail = f"the disk that holds {place} is nearly full"
                return True
        return False


def written_folders(record: dict[str, Any], *, layer: bool) -> list[str]:
    """The folders on this host that a container writes to: its volumes and, where it may, its own layer."""
    places = [str(m.get("Source", "")) for m in record.get("Mounts", []) if m.get("Type") == "volume"]
    if layer:
        places.append(str(record.get("GraphDriver", {}).get("Data", {}).get("UpperDir", "")))
    return [place for place in places if place]
