"""What holds one container to its limits, also while no agent runs: one small process for each task, in its own session.

It creates the container, copies the inputs in, starts it with the log going straight to a file, and watches wall time, log,
disk and, where the kernel does not, memory. In the end it writes `ended.json` and goes. The agent reads its files and asks by
files; if the supervisor itself is killed, the agent starts it again and it finds the container where it left it.
Only the standard library is imported, because every task pays for it.
"""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from distributio.agent.runners import usage, verdict

PLAN, LOG, PIDFILE = "plan.json", "log", "pid"
STARTED, STATE, ENDED, RECORD = "started.json", "state.json", "ended.json", "record.json"
STOP, SUSPENDED = "stop", "suspended"
BOOT = Path("/proc/sys/kernel/random/boot_id")

_TICK = 0.1
_FIRST_TICK = 0.02  # until the first process is seen, so that short tasks are measured too
_BEGINNING = 5.0
_ABANDONED = "the engine's own process for this container was killed"
_DISK_EVERY = 0.5
_STATE_EVERY = 1.0
_MOST_INTERRUPTIONS = 4
_PATIENCE = 20.0  # for the engine to notice an end
_LEAST_FREE_BYTES = 1 << 30  # on the host's own disk, or a twentieth of it if that is less
_ENGINE_TIMEOUT = 120.0


def write_whole(path: Path, value: object) -> None:
    """Write JSON so that a reader sees all of it or the one before."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def read_whole(path: Path) -> dict[str, Any] | None:
    """JSON written by `write_whole`, or None if there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class EngineFault(Exception):
    """The engine refused; the message is its own."""


class Supervisor:
    """One task's container, from before it is created until it has ended."""

    def __init__(self, slot: Path) -> None:
        self.slot = slot
        self.plan: dict[str, Any] = json.loads((slot / PLAN).read_text())
        self.name: str = self.plan["name"]
        self.pid = 0
        self.pidfd = -1
        self.groups: usage.Cgroups | None = None
        self.seen = usage.Usage()
        self.suspended_seconds = 0.0
        self.began = time.monotonic()
        self.disk: list[str] | None = None
        self.disk_due = 0.0
        self.state_due = 0.0
        self.last_tick = 0.0
        self.cause = ""
        self.detail = ""
        self.kill_at: float | None = None
        self.attach: subprocess.Popen[bytes] | None = None
        self.interruptions = 0
        self.monitor = 0
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

    def attach_log(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start an engine command that writes the container's output straight to the log file, as long as it runs."""
        with (self.slot / LOG).open("ab") as log:
            return subprocess.Popen(
                [*self.plan["command"], *arguments],
                env=self.plan["environment"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: os.nice(self.plan["nice"]) and None,
            )

    # --- beginning --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Create and start the container, or find the one that an earlier supervisor started."""
        started = read_whole(self.slot / STARTED)
        boot = BOOT.read_text().strip()
        if started is None:
            if (self.slot / STATE).exists():  # an earlier supervisor was interrupted in between
                self.remove_quietly()
            write_whole(self.slot / STATE, {})
            (self.slot / PIDFILE).unlink(missing_ok=True)
            self.engine("create", *self.plan["create"])
            if self.plan["inputs"] or self.plan["opened"]:
                self.copy_inputs()
            if (self.slot / STOP).exists():
                self.cause = "stopped"
                return
            self.began = time.monotonic()
            write_whole(self.slot / STARTED, {"boot": boot, "monotonic": self.began})
            self.attach = self.attach_log("start", "--attach", "--sig-proxy=false", self.name)
            return
        if started["boot"] != boot:
            raise EngineFault("the machine was restarted while it ran")
        self.began = started["monotonic"]
        state = read_whole(self.slot / STATE) or {}
        self.suspended_seconds = state.get("suspended_seconds", 0.0)
        self.seen.cpu_seconds = state.get("cpu_seconds", 0.0)
        self.seen.memory_bytes = state.get("memory_bytes", 0)
        self.follow_again()

    def follow_again(self) -> None:
        """Attach to a container that runs; start one that was only created; leave one that has ended."""
        state = self.record().get("State", {})
        if state.get("Status") in ("created", "configured", "initialized"):
            self.attach = self.attach_log("start", "--attach", "--sig-proxy=false", self.name)
        elif state.get("Running") or state.get("Paused"):
            with (self.slot / LOG).open("ab") as log:
                log.write(b"\n[distributio: the log was interrupted here, some of it may be missing]\n")
            self.attach = self.attach_log("attach", "--no-stdin", "--sig-proxy=false", self.name)
            self.pid = int(state.get("Pid") or 0)
            self.watch_process()

    def copy_inputs(self) -> None:
        """Put the inputs into the container that was created, as one tar stream."""
        from distributio.agent.runners import inputs  # only tasks with inputs pay for it

        reading, writing = os.pipe()
        child = subprocess.Popen(
            [*self.plan["command"], "cp", "-", f"{self.name}:/"],
            env=self.plan["environment"],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.close(reading)
        try:
            with os.fdopen(writing, "wb") as stream:
                inputs.write_tar(self.plan["inputs"], stream, self.plan["opened"])
        except BrokenPipeError:
            pass  # the engine says why below
        words = child.communicate(timeout=_ENGINE_TIMEOUT)[1].decode(errors="replace")
        if child.returncode:
            raise EngineFault(f"the inputs could not be copied in: {words.strip()}")

    def watch_process(self) -> None:
        """Hold on to the container's first process, so that its end is seen at once and its counters are still there."""
        if not self.pid:
            text = ""
            with contextlib.suppress(FileNotFoundError):  # the engine has not come so far
                text = (self.slot / PIDFILE).read_text().strip()
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

    # --- watching ---------------------------------------------------------------------------------------------

    def wall(self, now: float) -> float:
        """How long it has run, without the time it was suspended."""
        return now - self.began - self.suspended_seconds

    def sample(self) -> None:
        """See what the container uses."""
        if self.groups is not None:
            self.groups.update(self.seen)

    def check(self, now: float) -> str:
        """The limit that is exceeded now, or nothing."""
        suspended = (self.slot / SUSPENDED).exists()
        if suspended:
            self.suspended_seconds += now - self.last_tick
        self.last_tick = now
        if self.pidfd < 0:
            self.watch_process()
        self.sample()
        if self.is_abandoned():
            self.detail = _ABANDONED
            return "lost"
        if (self.slot / LOG).stat().st_size > self.plan["log_bytes"]:
            return "log-limit"
        if self.wall(now) > self.plan["wall_seconds"]:
            return "wall-limit"
        if self.host_disk_is_full():
            return "host-disk-full"
        if now >= self.disk_due and now - self.began >= _DISK_EVERY:
            too_much = self.disk_exceeded()
            spent = time.monotonic() - now
            self.disk_due = now + max(_DISK_EVERY, 8 * spent)
            if too_much:
                return too_much
        return "memory-limit" if not suspended and self.memory_exceeded() else ""

    def is_abandoned(self) -> bool:
        """Whether the engine's process that watches the container, and would learn how it ends, has gone before it."""
        if self.pidfd < 0:
            return False
        pid, name = usage.parent(self.pid)
        if name == "conmon":
            self.monitor = pid
        return bool(self.monitor and pid and pid != self.monitor)

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

    def note_state(self, now: float) -> None:
        """Let the agent, and a supervisor after us, know how it stands."""
        if now < self.state_due:
            return
        self.state_due = now + _STATE_EVERY
        write_whole(self.slot / STATE, {"suspended_seconds": self.suspended_seconds} | self.measures())

    def measures(self) -> dict[str, Any]:
        """What has been used."""
        return {
            "wall_seconds": round(max(0.0, self.wall(time.monotonic())), 3),
            "cpu_seconds": round(self.seen.cpu_seconds, 3),
            "memory_bytes": self.seen.memory_bytes,
        }

    def watch(self) -> None:
        """Follow the container until its log has ended, and end it when it must end."""
        self.last_tick = time.monotonic()
        while self.attach is not None:
            self.wait_a_little(self.attach)
            if self.attach.poll() is not None:
                if not self.is_alive():
                    return
                self.follow_again()  # only the log's reader was killed, or there is nothing to read from any more
                self.interruptions += 1
                if self.interruptions >= _MOST_INTERRUPTIONS:
                    self.cause = self.cause or "lost"
                    self.detail = _ABANDONED
                    self.kill()
                    return
                continue
            now = time.monotonic()
            if not self.cause:
                self.cause = self.check(now)
                if self.cause:
                    self.kill()
                if self.cause == "lost":
                    return  # nobody would tell us of the end
            self.heed_stop(now)
            if self.kill_at is not None and now >= self.kill_at:
                self.kill()
            self.note_state(now)

    def wait_a_little(self, attach: subprocess.Popen[bytes]) -> None:
        """Wait for the next tick, or for the end, whichever is first."""
        poller = select.poll()
        watched = os.pidfd_open(attach.pid)
        poller.register(watched, select.POLLIN)
        if self.pidfd >= 0:
            poller.register(self.pidfd, select.POLLIN)
        beginning = self.pidfd == -1 and time.monotonic() - self.began < _BEGINNING
        ready = [descriptor for descriptor, _ in poller.poll((_FIRST_TICK if beginning else _TICK) * 1000)]
        os.close(watched)
        if self.pidfd in ready:
            self.sample()  # before the engine clears the counters away
            os.close(self.pidfd)
            self.pidfd = -2
            self.groups = None
        elif self.pidfd == -1:
            self.watch_process()

    def is_alive(self) -> bool:
        """Whether the container runs on although nobody reads its log."""
        state = self.record().get("State", {})
        pid = int(state.get("Pid") or 0)
        return bool(state.get("Running") or state.get("Paused")) and (not pid or os.path.exists(f"/proc/{pid}"))

    # --- ending -----------------------------------------------------------------------------------------------

    def heed_stop(self, now: float) -> None:
        """End the container if the agent asked for it: kindly first, if it asked kindly."""
        try:
            wish = (self.slot / STOP).read_text()
        except FileNotFoundError:
            return
        if self.cause and not (self.cause == "stopped" and wish == "now"):
            return
        first = not self.cause
        self.cause = "stopped"
        if wish == "now" or (self.slot / SUSPENDED).exists():
            if self.kill_at is None or self.kill_at > now:
                self.kill()
        elif first:
            self.kill_at = now + self.plan["grace_seconds"]
            try:
                self.engine("kill", "--signal", "TERM", self.name)
            except EngineFault:
                self.kill()  # it may have ended in between, which does no harm

    def kill(self) -> None:
        """Kill the container, all of it, and again later should it not be gone by then."""
        self.kill_at = time.monotonic() + 5.0
        if self.pidfd >= 0 and not (self.slot / SUSPENDED).exists():
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

    def end(self) -> dict[str, Any]:
        """How it ended, with everything measured."""
        record, deadline = self.record(), time.monotonic() + _PATIENCE
        while self.cause != "lost" and record.get("State", {}).get("Running") and time.monotonic() < deadline:
            time.sleep(_TICK)
            record = self.record()
        results = [str(m["Source"]) for m in record.get("Mounts", []) if m.get("Destination") == self.plan["results"]]
        entries = self.look("entries", *results) if results else None
        write_whole(self.slot / RECORD, {"results": entries})
        if self.cause in ("host-disk-full", "lost"):
            return verdict.fault(self.cause, self.detail)
        if self.cause == "stopped":
            return verdict.stopped()
        if self.cause:
            limited = verdict.limit_hit(self.cause)
            return limited | {"detail": self.detail or limited["detail"]}
        self.disk = written_folders(record, layer=self.plan["writable_root"])
        if self.disk_exceeded() == "disk-limit":
            return verdict.limit_hit("disk-limit")
        return verdict.from_state(
            record.get("State", {}),
            self.log_tail(),
            oom_kills=self.seen.oom_kills,
            peak_bytes=self.seen.memory_bytes,
            limit_bytes=self.plan["memory_bytes"],
            refused_processes=self.seen.refused_processes,
        )

    def log_tail(self) -> str:
        """The last of the log, which holds the engine's own words if nothing ever ran."""
        with (self.slot / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, io.SEEK_END) - 2000))
            return log.read().decode(errors="replace")

    def remove_quietly(self) -> None:
        """Remove a container that never ran."""
        try:
            self.engine("rm", "-f", "-v", self.name)
        except EngineFault as refusal:
            self.detail = str(refusal)

    def run(self) -> None:
        """All of it."""
        try:
            self.begin()
            self.watch()
            outcome = self.end()
        except (EngineFault, OSError) as refusal:
            words = str(refusal)
            lost = "restarted" in words
            outcome = verdict.fault("lost", words) if lost else verdict.not_started(words)
        self.cut_log()
        write_whole(self.slot / ENDED, outcome | self.measures())

    def cut_log(self) -> None:
        """Keep no more of the log than its limit."""
        log = self.slot / LOG
        if log.exists() and log.stat().st_size > self.plan["log_bytes"]:
            os.truncate(log, self.plan["log_bytes"])


def written_folders(record: dict[str, Any], *, layer: bool) -> list[str]:
    """The folders on this host that a container writes to: its volumes and, where it may, its own layer."""
    places = [str(m.get("Source", "")) for m in record.get("Mounts", []) if m.get("Type") == "volume"]
    if layer:
        places.append(str(record.get("GraphDriver", {}).get("Data", {}).get("UpperDir", "")))
    return [place for place in places if place]


def main() -> int:
    """Supervise the task in the slot that is named. The lock on it was passed to us and is ours until we end."""
    slot = Path(sys.argv[1])
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # The agent's end is not the task's. Not SIG_IGN, which the container would inherit.
        signal.signal(number, lambda *_: None)
    if (slot / ENDED).exists():
        return 0
    Supervisor(slot).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
