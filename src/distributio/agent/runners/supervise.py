"""What holds one container to its limits, also while no agent runs: one small process for each task, in its own
session.

It creates the container, copies the inputs in, starts it with the log going straight to a file, and watches wall time,
log, disk and, where the kernel does not, memory. In the end it writes `ended.json` and goes. The agent reads its files
and asks by files; if the supervisor itself is killed, the agent starts it again and it finds the container where it
left it. Only the standard library is imported, because every task pays for it.
"""

import contextlib
import io
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distributio.agent.runners import slot as slots
from distributio.agent.runners import verdict
from distributio.agent.runners.contained import ABANDONED, Contained, EngineFault, written_folders

BOOT = Path("/proc/sys/kernel/random/boot_id")

_TICK = 0.1
_FIRST_TICK = 0.02  # until the first process is seen, so that short tasks are measured too
_BEGINNING = 5.0
_DISK_EVERY = 0.5
_STATE_EVERY = 1.0
RESTARTED = "the machine was restarted while it ran"
_MOST_INTERRUPTIONS = 4
_PATIENCE = 20.0  # for the engine to notice an end
_COPY_SECONDS = 3600.0  # for the inputs


class Supervisor(Contained):
    """One task's container, from before it is created until it has ended."""

    def __init__(self, slot: Path) -> None:
        super().__init__(slot)
        self.began = time.monotonic()
        self.suspended_seconds = 0.0
        self.last_tick = 0.0
        self.disk_due = 0.0
        self.state_due = 0.0
        self.cause = ""
        self.attach: subprocess.Popen[bytes] | None = None
        self.interruptions = 0

    # --- beginning --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Create and start the container, or find the one that an earlier supervisor started."""
        started = slots.read_whole(self.slot / slots.STARTED)
        boot = BOOT.read_text().strip()
        if started is None:
            if (self.slot / slots.STATE).exists():  # an earlier supervisor was interrupted in between
                self.remove_quietly()
            slots.write_whole(self.slot / slots.STATE, {})
            (self.slot / slots.PIDFILE).unlink(missing_ok=True)
            self.engine("create", *self.plan["create"])
            if self.plan["inputs"] or self.plan["opened"]:
                self.copy_inputs()
            if (self.slot / slots.STOP).exists():
                self.cause = "stopped"
                return
            self.began = time.monotonic()
            slots.write_whole(self.slot / slots.STARTED, {"boot": boot, "monotonic": self.began})
            self.attach = self.attach_log("start", *self.plan["start"], self.name)
            return
        if started["boot"] != boot:
            raise EngineFault(RESTARTED)
        self.began = started["monotonic"]
        state = slots.read_whole(self.slot / slots.STATE) or {}
        self.suspended_seconds = state.get("suspended_seconds", 0.0)
        self.seen.cpu_seconds = state.get("cpu_seconds", 0.0)
        self.seen.memory_bytes = state.get("memory_bytes", 0)
        self.cause = state.get("limit", "")
        self.follow_again()

    def follow_again(self) -> None:
        """Attach to a container that runs; start one that was only created; leave one that has ended."""
        state = self.record().get("State", {})
        if state.get("Status") in ("created", "configured", "initialized"):
            self.attach = self.attach_log("start", *self.plan["start"], self.name)
        elif state.get("Running") or state.get("Paused"):
            with (self.slot / slots.LOG).open("ab") as log:
                log.write(b"\n[distributio: the log was interrupted here, some of it may be missing]\n")
            self.attach = self.attach_log("attach", "--no-stdin", "--sig-proxy=false", self.name)
            self.pid = int(state.get("Pid") or 0)
            self.watch_process()

    def copy_inputs(self) -> None:
        """Put the inputs into the container that was created: one tar stream for each folder they go below."""
        if self.plan["opened"]:
            self.copy_below("/", [], self.plan["opened"])
        for folder in sorted({one["below"] for one in self.plan["inputs"]}):
            self.copy_below(folder, [one for one in self.plan["inputs"] if one["below"] == folder], "")

    def copy_below(self, folder: str, some: list[dict[str, Any]], opened: str) -> None:
        """Put some inputs below one folder of the container."""
        from distributio.agent.runners import inputs  # only tasks with inputs pay for it

        reading, writing = os.pipe()
        child = subprocess.Popen(
            [*self.plan["command"], "cp", "-", f"{self.name}:{folder}"],
            env=self.plan["environment"],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.close(reading)
        # If the engine goes away in the middle, it says why below.
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as stream:
            inputs.write_tar(some, stream, opened)
        words = child.communicate(timeout=_COPY_SECONDS)[1].decode(errors="replace")
        if child.returncode:
            raise EngineFault(f"the inputs could not be copied in: {words.strip()}")

    # --- watching ---------------------------------------------------------------------------------------------

    def wall(self, now: float) -> float:
        """How long it has run, without the time it was suspended."""
        return now - self.began - self.suspended_seconds

    def check(self, now: float) -> str:
        """The limit that is exceeded now, or nothing."""
        suspended = (self.slot / slots.SUSPENDED).exists()
        if suspended:
            self.suspended_seconds += now - self.last_tick
        self.last_tick = now
        if self.pidfd < 0:
            self.watch_process()
        self.sample()
        if self.is_abandoned():
            self.detail = ABANDONED
            return "lost"
        if (self.slot / slots.LOG).stat().st_size > self.plan["log_bytes"]:
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

    def note_state(self, now: float) -> None:
        """Let the agent, and a supervisor after us, know how it stands."""
        if now < self.state_due:
            return
        self.state_due = now + _STATE_EVERY
        self.write_state({})

    def note_limit(self) -> None:
        """Write down, before it is ended, which limit the container is ended for."""
        self.write_state({"limit": self.cause})

    def write_state(self, more: dict[str, Any]) -> None:
        """What the agent and a supervisor after us may need."""
        state = {"suspended_seconds": self.suspended_seconds} | self.measures()
        slots.write_whole(self.slot / slots.STATE, state | more)

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
        if self.cause and self.is_alive():
            self.kill()  # the supervisor before us had decided so
        while self.attach is not None:
            self.wait_a_little(self.attach)
            if self.attach.poll() is not None:
                if not self.is_alive():
                    return
                self.follow_again()  # only the log's reader was killed, or there is nothing to read from any more
                self.interruptions += 1
                if self.interruptions >= _MOST_INTERRUPTIONS:
                    self.cause = self.cause or "lost"
                    self.detail = ABANDONED
                    self.kill()
                    return
                continue
            now = time.monotonic()
            if not self.cause:
                self.cause = self.check(now)
                if self.cause:
                    self.note_limit()  # a supervisor after us must not take our kill for somebody else's
                    self.kill()
                if self.cause == "lost":
                    return  # nobody would tell us of the end
            self.heed_stop(now)
            if self.kill_at is not None and now >= self.kill_at:
                self.kill()
            if not self.cause:
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

    def heed_stop(self, now: float) -> None:
        """End the container if the agent asked for it: kindly first, if it asked kindly."""
        try:
            wish = (self.slot / slots.STOP).read_text()
        except FileNotFoundError:
            return
        if self.cause and not (self.cause == "stopped" and wish == "now"):
            return
        first = not self.cause
        self.cause = "stopped"
        if wish == "now" or (self.slot / slots.SUSPENDED).exists():
            if self.kill_at is None or self.kill_at > now:
                self.kill()
        elif first:
            self.kill_at = now + self.plan["grace_seconds"]
            try:
                self.engine("kill", "--signal", "TERM", self.name)
            except EngineFault:
                self.kill()  # it may have ended in between, which does no harm

    # --- ending -----------------------------------------------------------------------------------------------

    def end(self) -> dict[str, Any]:
        """How it ended, with everything measured."""
        record, deadline = self.record(), time.monotonic() + _PATIENCE
        while self.cause != "lost" and record.get("State", {}).get("Running") and time.monotonic() < deadline:
            time.sleep(_TICK)
            record = self.record()
        results = [str(m["Source"]) for m in record.get("Mounts", []) if m.get("Destination") == self.plan["results"]]
        entries = self.look("entries", *results) if results else None
        slots.write_whole(self.slot / slots.RECORD, {"results": entries})
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
        with (self.slot / slots.LOG).open("rb") as log:
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
        except EngineFault as refusal:
            words = str(refusal)
            outcome = verdict.fault("lost", words) if words == RESTARTED else verdict.not_started(words)
            self.remove_quietly()
        except Exception as fault:
            # Whatever it was: nothing may run on unwatched, and the agent must hear of it.
            outcome = verdict.fault("engine-error", f"the task could not be supervised: {fault!r}")
            self.remove_quietly()
        self.cut_log()
        slots.write_whole(self.slot / slots.ENDED, outcome | self.measures())

    def cut_log(self) -> None:
        """Keep no more of the log than its limit."""
        log = self.slot / slots.LOG
        if log.exists() and log.stat().st_size > self.plan["log_bytes"]:
            os.truncate(log, self.plan["log_bytes"])


def main() -> int:
    """Supervise the task in the slot that is named. The lock on it was passed to us and is ours until we end."""
    slot = Path(sys.argv[1])
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # The agent's end is not the task's. Not SIG_IGN, which the container would inherit.
        signal.signal(number, lambda *_: None)
    if (slot / slots.ENDED).exists():
        return 0
    Supervisor(slot).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
