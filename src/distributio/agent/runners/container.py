"""How jobs run in containers: the runner that most hosts have.

The agent's side only decides and asks. Each task has a supervisor of its own (supervise.py) that starts the container
and holds it to its limits; the two speak through files in the task's slot, so either may be killed and started again.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

import distributio
from distributio.agent.runners import selftest, supervise, usage
from distributio.agent.runners import slot as slots
from distributio.agent.runners.contract import Capabilities, Handle, Image, Phase, Progress, RunnerError
from distributio.agent.runners.engine import Engine, candidates, words_of
from distributio.agent.runners.flags import LABEL, RESULTS, Profile, copied_to, create_arguments, runs_as_root
from distributio.agent.runners.images import Images
from distributio.wire.native import Assignment
from distributio.wire.results_tar import Bounds, normalise
from distributio.wire.tar_blocks import BadResults

_MOST_RESTARTS = 5
_GRACE_SECONDS = 10.0
_NICE = 10
_PATIENCE = 10.0
_TAIL = 4096
_PROGRESS = re.compile(rb"^##distribut(?:io)? progress (0(?:\.\d{1,9})?|1(?:\.0{1,9})?)\s*$", re.MULTILINE)
_SECCOMP = Path(__file__).with_name("seccomp.json")


class ContainerRunner:
    """Runs assignments in containers. `data` is the agent's own folder; `prefer` keeps to podman or docker."""

    name = "container"

    def __init__(
        self,
        data: Path,
        *,
        network_allowed: bool = False,
        prefer: str = "",
        environment: Mapping[str, str] | None = None,
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        self.folder = data / "engine"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.images = Images(self.folder / "images")
        self.network_allowed = network_allowed
        self.prefer = prefer
        self.environment = dict(os.environ if environment is None else environment)
        self.grace_seconds = grace_seconds
        self.instance = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:10]
        self._chosen: tuple[Engine, Profile] | None = None
        self._capabilities: Capabilities | None = None
        self._children: set[int] = set()

    # --- the engine -------------------------------------------------------------------------------------------

    def probe(self, *, fresh: bool = False) -> Capabilities:
        """Run a self-test and say what was seen; an earlier one of the same engine counts, unless `fresh`."""
        if self._capabilities is not None and not fresh:
            return self._capabilities
        found = [
            (engine, None if fresh else selftest.remembered(engine, self.folder))
            for engine in candidates(self.folder, self.environment, self.prefer)
        ]
        if not any(finding and finding.profile for _, finding in found):
            found = [(engine, None) for engine, _ in found]
        problems = []
        for engine, known in found:
            finding = known or selftest.examine(engine, self.folder, str(_SECCOMP))
            if finding.profile is not None:
                self._chosen = engine, finding.profile
                self._capabilities = Capabilities(
                    works=True,
                    engine=engine.description,
                    sandbox=finding.profile.sandbox,
                    missing=finding.profile.missing,
                    can_suspend=bool(finding.profile.suspend),
                )
                return self._capabilities
            problems.append(f"{engine.description}: {finding.problem}")
        nothing = "no podman or docker is installed; install podman and uidmap"
        return Capabilities(works=False, problem="\n".join(problems) or nothing, can_suspend=False)

    def _engine(self) -> tuple[Engine, Profile]:
        """The engine that passed the self-test."""
        if self._chosen is None:
            seen = self.probe()
            if self._chosen is None:
                raise RunnerError("engine-error", f"no container engine works here: {seen.problem}")
        return self._chosen

    def has_image(self, manifest_digest: str) -> bool:
        """Whether the image is ready to run."""
        return self.images.has(self._engine()[0], manifest_digest)

    def prepare(self, image: Image) -> None:
        """Load the image, under a name of ours, with every digest checked on the way."""
        self.images.prepare(self._engine()[0], image)

    def forget_image(self, manifest_digest: str) -> None:
        """Remove the image from the engine."""
        self.images.forget(self._engine()[0], manifest_digest)

    # --- running ----------------------------------------------------------------------------------------------

    def start(self, assignment: Assignment, inputs: dict[str, Path], slot: Path) -> Handle:
        """Begin: write down what is to happen, and leave it to a supervisor."""
        engine, profile = self._engine()
        facts = self.images.facts(assignment.image_manifest)
        if facts is None:
            raise RunnerError("image-missing", f"the image {assignment.image_manifest} has not been prepared")
        slot.mkdir(parents=True, exist_ok=True)
        name = f"distributio-{self.instance}-{assignment.task}-{os.urandom(3).hex()}"
        spec, limits = assignment.spec, assignment.spec.limits
        create = create_arguments(
            spec,
            facts,
            profile,
            name=name,
            labels={"instance": self.instance, "task": str(assignment.task), "slot": str(slot)},
            seccomp=str(_SECCOMP),
            pidfile=str(slot / slots.PIDFILE),
            network_allowed=self.network_allowed,
            rootless=engine.rootless,
        )
        missing = [one.digest for one in spec.inputs if one.digest not in inputs]
        if missing:
            raise RunnerError("input-missing", f"the input {missing[0]} is not here; fetch it again")
        plan = {
            "name": name,
            "task": assignment.task,
            "kind": engine.kind,
            "command": engine.command,
            "environment": engine.environment,
            "create": create,
            "start": ["--attach", "--sig-proxy=false"] if engine.kind == "podman" else ["--attach"],
            "inputs": [
                {
                    "path": one.path,
                    "source": str(inputs[one.digest]),
                    "folder": one.is_folder,
                    "below": copied_to(one.path, create, engine.kind),
                }
                for one in spec.inputs
            ],
            "opened": "" if runs_as_root(spec) else RESULTS,
            "wall_seconds": limits.wall_seconds,
            "memory_bytes": limits.memory_bytes,
            "disk_bytes": limits.disk_bytes + sum(one.size_bytes for one in spec.inputs),
            "log_bytes": limits.log_bytes,
            "memory_held": profile.memory_held,
            "storage": engine.storage,
            "pause_file": engine.pause_file,
            "results": RESULTS,
            "writable_root": spec.writable_root,
            "grace_seconds": self.grace_seconds,
            "nice": _NICE,
        }
        for file in slots.FILES:
            (slot / file).unlink(missing_ok=True)
        slots.write_whole(slot / slots.PLAN, plan)
        if not self._supervise(slot):
            raise RunnerError("slot-busy", f"{slot} is used by another task that still runs")
        return {"runner": self.name, "task": assignment.task, "name": name, "slot": str(slot)}

    def _supervise(self, slot: Path) -> bool:
        """Start a supervisor, unless there is one. It inherits a lock on the slot, which ends with it however it
        ends."""
        self._reap()
        lock = slots.try_lock(slot)
        if lock is None:
            return False
        try:
            null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
            child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-S", "-m", supervise.__name__, str(slot)],
                {"PYTHONPATH": str(Path(distributio.__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"},
                file_actions=[*null, (os.POSIX_SPAWN_DUP2, lock, 3)],
                setsid=True,
            )
            self._children.add(child)
        finally:
            os.close(lock)
        return True

    def _reap(self) -> None:
        """Take note of supervisors that ended, so that none stays behind as a zombie."""
        for child in list(self._children):
            try:
                gone, _ = os.waitpid(child, os.WNOHANG)
            except ChildProcessError:
                gone = child
            if gone:
                self._children.discard(child)

    def poll(self, handle: Handle) -> Progress:
        """Say how it stands, from the supervisor's files; start a supervisor again where it was killed."""
        slot = Path(handle["slot"])
        self._reap()
        ended = self._ended(handle)
        if ended is not None:
            return ended
        if not self._is_ours(handle):
            return Progress(phase=Phase.LOST, cause="lost", detail="nothing is known of it here")
        if not self._revive(slot):
            return self._ended(handle) or Progress(
                phase=Phase.ENDED, outcome="error", cause="lost", detail="its supervisor was killed again and again"
            )
        state = slots.read_whole(slot / slots.STATE) or {}
        return Progress(
            phase=Phase.SUSPENDED if (slot / slots.SUSPENDED).exists() else Phase.RUNNING,
            fraction=self._fraction(slot),
            wall_seconds=state.get("wall_seconds", 0.0),
            cpu_seconds=state.get("cpu_seconds", 0.0),
            memory_bytes=state.get("memory_bytes", 0),
        )

    def _is_ours(self, handle: Handle) -> bool:
        """Whether the slot still holds the task of this handle."""
        plan = slots.read_whole(Path(handle["slot"]) / slots.PLAN)
        return plan is not None and plan.get("name") == handle["name"]

    def _ended(self, handle: Handle) -> Progress | None:
        """How it ended, if it has."""
        slot = Path(handle["slot"])
        ended = slots.read_whole(slot / slots.ENDED)
        if ended is None or not self._is_ours(handle):
            return None
        return msgspec.convert({"phase": "ended", "fraction": self._fraction(slot)} | ended, Progress)

    def _revive(self, slot: Path) -> bool:
        """See to it that the task has a supervisor; False when that has been tried too often."""
        again = slot / slots.AGAIN
        restarts = again.stat().st_size if again.exists() else 0
        if restarts >= _MOST_RESTARTS:
            return slots.has_supervisor(slot)
        if self._supervise(slot):
            with again.open("ab") as count:
                count.write(b".")
        return True

    def _fraction(self, slot: Path) -> float | None:
        """How far the job says it is, in the last line of its log of the form `##distributio progress 0.42`."""
        try:
            with (slot / slots.LOG).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
                said = _PROGRESS.findall(log.read())
        except FileNotFoundError:
            return None
        return float(said[-1]) if said else None

    def read_log(self, handle: Handle, offset: int, most: int) -> bytes:
        """The combined log from `offset` on."""
        slot = Path(handle["slot"])
        plan = slots.read_whole(slot / slots.PLAN)
        if plan is None or not self._is_ours(handle):
            return b""
        try:
            with (slot / slots.LOG).open("rb") as log:
                log.seek(offset)
                return log.read(max(0, min(most, plan["log_bytes"] - offset)))
        except FileNotFoundError:
            return b""

    # --- steering ---------------------------------------------------------------------------------------------

    def _container_pid(self, slot: Path) -> int:
        """The container's first process, waited for a moment if it is about to come; 0 if there is none."""
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline and not (slot / slots.ENDED).exists():
            try:
                text = (slot / slots.PIDFILE).read_text().strip()
            except FileNotFoundError:
                text = ""
            if text.isdigit():
                return int(text)
            time.sleep(0.02)
        return 0

    def suspend(self, handle: Handle) -> bool:
        """Freeze the container; where the engine cannot, stop its processes one by one."""
        engine, profile = self._engine()
        slot = Path(handle["slot"])
        if not profile.suspend or not self._is_ours(handle) or (slot / slots.ENDED).exists():
            return False
        if (slot / slots.SUSPENDED).exists():
            return True
        pid = self._container_pid(slot) if engine.kind == "podman" else 0
        if profile.suspend == "engine":
            frozen = engine.run("pause", handle["name"]).returncode == 0
        else:
            frozen = bool(pid) and self._signal(engine, "stop", pid)
        if frozen:
            (slot / slots.SUSPENDED).write_text(profile.suspend)
        return frozen

    def _signal(self, engine: Engine, verb: str, pid: int) -> bool:
        """Stop or continue every process of a container."""
        helper = [sys.executable, "-I", "-S", usage.__file__, verb, str(pid)]
        if engine.rootless:
            return engine.run("unshare", *helper).returncode == 0
        return subprocess.run(helper, check=False, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0

    def resume(self, handle: Handle) -> None:
        """Thaw the container."""
        engine, _ = self._engine()
        slot = Path(handle["slot"])
        marker = slot / slots.SUSPENDED
        if not self._is_ours(handle) or not marker.exists():
            return
        if marker.read_text() == "engine":
            done = engine.run("unpause", handle["name"])
            refused = words_of(done) if done.returncode else ""
        else:
            pid = self._container_pid(slot)
            refused = "" if not pid or self._signal(engine, "continue", pid) else "its processes cannot be reached"
        if refused and engine.inspect(handle["name"]).get("State", {}).get("Paused"):
            raise RunnerError("engine-error", f"the task cannot be resumed: {refused}")
        marker.unlink(missing_ok=True)

    def stop(self, handle: Handle, *, at_once: bool = False) -> None:
        """Ask the supervisor to end it."""
        slot = Path(handle["slot"])
        if not self._is_ours(handle) or (slot / slots.ENDED).exists():
            return
        wish = slot / slots.STOP
        if at_once or not wish.exists():
            partial = wish.with_suffix(".partial")
            partial.write_text("now" if at_once else "kindly")
            partial.replace(wish)
        self._revive(slot)

    # --- afterwards -------------------------------------------------------------------------------------------

    def collect(self, handle: Handle, output: BinaryIO) -> int:
        """Copy the results out, in the canonical form. What went over its disk limit has none."""
        slot = Path(handle["slot"])
        ended = self._ended(handle)
        if ended is None:
            raise RunnerError("not-ended", "results are copied out after the task has ended; poll it first")
        if ended.cause == "disk-limit" or self._results_are_empty(slot):
            return 0
        engine, _ = self._engine()
        plan = json.loads((slot / slots.PLAN).read_text())
        with tempfile.TemporaryFile(dir=slot) as copied:
            done = engine.run("cp", f"{handle['name']}:{RESULTS}", "-", output=copied)
            if done.returncode:
                raise RunnerError("results-unreadable", f"the results cannot be copied out: {words_of(done)}")
            copied.seek(0)
            try:
                with tempfile.TemporaryFile(dir=slot) as packed:
                    summary = normalise(copied, packed, Bounds(content_bytes=plan["disk_bytes"]))
                    packed.seek(0)
                    while summary.members and (part := packed.read(1 << 20)):
                        output.write(part)
            except BadResults as bad:
                raise RunnerError("results-bad", str(bad)) from bad
        return summary.files

    def _results_are_empty(self, slot: Path) -> bool:
        """Whether it was seen that there are no results, so that the engine need not be asked."""
        record = slots.read_whole(slot / slots.RECORD)
        return record is None or record.get("results") == 0

    def remove(self, handle: Handle) -> None:
        """Remove the container with all it wrote, and our files in the slot."""
        slot = Path(handle["slot"])
        mine = self._is_ours(handle)
        deadline = time.monotonic() + _PATIENCE
        if mine and not (slot / slots.ENDED).exists():
            (slot / slots.STOP).write_text("now")
        # A supervisor that is just beginning would create the container behind our back.
        while mine and slots.has_supervisor(slot) and time.monotonic() < deadline:
            time.sleep(0.02)
        engine, _ = self._engine()
        # The engine may still be tidying up behind a container that has just ended, and then refuses.
        while (done := engine.run("rm", "-f", "-v", handle["name"])).returncode:
            if "no such container" in words_of(done).lower():
                break
            if time.monotonic() > deadline:
                raise RunnerError("engine-error", f"the task cannot be removed: {words_of(done)}")
            time.sleep(0.1)
        if not mine:
            return
        for file in slots.FILES:
            (slot / file).unlink(missing_ok=True)

    def leftovers(self) -> Iterator[Handle]:
        """The containers that carry this agent's label."""
        engine, _ = self._engine()
        names = engine.ask("ps", "-aq", "--no-trunc", "--filter", f"label={LABEL}.instance={self.instance}").split()
        for name in names:
            record = engine.inspect(name)
            labels = record.get("Config", {}).get("Labels") or {}
            task = labels.get(f"{LABEL}.task", "")
            yield {
                "runner": self.name,
                "task": int(task) if task.isdigit() else 0,
                "name": str(record.get("Name", name)).removeprefix("/"),
                "slot": labels.get(f"{LABEL}.slot", ""),
            }

    def uninstall(self) -> None:
        """Remove every task of this agent, and its engine's own storage, from the machine."""
        for handle in list(self.leftovers()):
            self.remove(handle)
        engine, _ = self._engine()
        for manifest_digest in self.images.all():
            self.forget_image(manifest_digest)
        engine.uninstall()
        self._capabilities = self._chosen = None
