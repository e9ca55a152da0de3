"""Which container engine runs our jobs, and how it is spoken to: argument lists, never a shell.

The agent's podman has storage, run files and configuration of its own, below the agent's data folder, so that it
neither sees nor touches the owner's images and containers. Docker has one store for all; there we keep to our own
names and labels.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from distributio.agent.runners import usage
from distributio.agent.runners.contract import RunnerError

TIMEOUT_SECONDS = 120.0
LOAD_TIMEOUT_SECONDS = 3600.0
_KEPT_VARIABLES = ("PATH", "HOME", "USER", "LANG", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST",
                   "DOCKER_CONTEXT", "DOCKER_CONFIG")  # fmt: skip
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONFIGURATION = """\
# Written by the agent. What the owner set for their own containers does not apply to jobs, nor the other way round.
[containers]
netns = "none"
log_driver = "none"
[engine]
cgroup_manager = "{cgroup_manager}"
events_logger = "none"
lock_type = "file"
"""


class Engine(Struct, frozen=True, kw_only=True):
    """An engine with its settings: `command` is its program and global options."""

    kind: str  # "podman" or "docker"
    version: str
    command: list[str]
    environment: dict[str, str]
    rootless: bool = False
    runtime: str = ""
    storage: str = "/"  # the folder on whose disk containers write, as far as we know it
    runs: str = ""  # the folder of its run files
    pause_file: str = ""  # where rootless podman notes a process that is in its user namespace

    @property
    def description(self) -> str:
        """In words, for people."""
        words = [self.kind, self.version, "rootless" if self.rootless else "", self.runtime]
        return " ".join(word for word in words if word)

    def run(
        self, *arguments: str, output: IO[bytes] | None = None, timeout: float = TIMEOUT_SECONDS
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one command to its end; what it says is in the answer, whatever its exit code."""
        try:
            return subprocess.run(
                [*self.command, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output if output is not None else subprocess.PIPE,
                stderr=subprocess.PIPE,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise RunnerError(
                "engine-error",
                f"{self.kind} did not answer `{arguments[0]}` within {timeout:.0f} seconds; is it stuck?",
            ) from late
        except OSError as gone:
            raise RunnerError("engine-error", f"{self.command[0]} cannot be run: {gone}; install it again") from gone

    def ask(self, *arguments: str, timeout: float = TIMEOUT_SECONDS) -> str:
        """Run one command and return what it prints; its refusal is an error with its own words."""
        done = self.run(*arguments, timeout=timeout)
        if done.returncode:
            raise RunnerError("engine-error", f"{self.kind} {arguments[0]}: {words_of(done)}")
        return done.stdout.decode(errors="replace")

    def inspect(self, name: str, kind: str = "container") -> dict[str, Any]:
        """The engine's record of a container or image; empty when it has none."""
        done = self.run("inspect", "--type", kind, name)
        found = json.loads(done.stdout) if done.returncode == 0 else []
        return found[0] if found else {}

    def load(self, write: Callable[[IO[bytes]], None]) -> None:
        """Load an image archive that `write` writes to the engine's standard input. If it raises, nothing is loaded."""
        child = subprocess.Popen(
            [*self.command, "load"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert child.stdin is not None
        stdin, child.stdin = child.stdin, None
        try:
            # If the engine goes away in the middle, it says why below.
            with contextlib.suppress(BrokenPipeError), stdin:
                write(stdin)
        except BaseException:
            child.kill()
            child.communicate()
            raise
        said = child.communicate(timeout=LOAD_TIMEOUT_SECONDS)[1].decode(errors="replace").strip()
        if child.returncode:
            raise RunnerError("image-bad", f"{self.kind} would not load the image: {said[-1000:]}")

    def uninstall(self) -> None:
        """Give back all that an engine of our own occupies. Nothing may run in it any more."""
        if self.kind != "podman":
            return
        self.ask("rmi", "--all", "--force")
        storage = Path(self.storage) / "storage"
        if self.rootless:
            # What is in it belongs to subordinate ids and is mounted in the engine's namespace: it has to be done there,
            # and at one go, because every command of the engine mounts it again.
            self.ask("unshare", sys.executable, "-I", "-S", usage.__file__, "clear", str(storage))
            pause = Path(self.pause_file)
            if pause.exists():
                os.kill(int(pause.read_text()), signal.SIGKILL)
        else:
            usage.clear(storage)
        shutil.rmtree(self.runs)


def words_of(done: subprocess.CompletedProcess[bytes]) -> str:
    """What a command said when it failed."""
    return done.stderr.decode(errors="replace").strip()[-1000:] or f"exit code {done.returncode}"


# --- finding one --------------------------------------------------------------------------------------------------


def engine_environment(given: Mapping[str, str], data: Path) -> dict[str, str]:
    """The environment engines run in: the little they need, nothing else of the owner's."""
    kept = {name: given[name] for name in _KEPT_VARIABLES if name in given}
    kept.setdefault("PATH", _DEFAULT_PATH)
    kept.setdefault("HOME", str(data))
    return kept | {"TMPDIR": str(data / "tmp"), "CONTAINERS_CONF": str(data / "containers.conf")}


def run_folder(data: Path, given: Mapping[str, str]) -> Path:
    """A short private folder for run files, which lie in memory where the system offers that: socket paths are limited
    to about a hundred characters, and after a restart of the machine it has to be gone."""
    mark = hashlib.sha256(str(data).encode()).hexdigest()[:10]
    runtime = given.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        folder = Path("/run/distributio") / mark
        folder.parent.mkdir(mode=0o755, exist_ok=True)
    elif runtime and os.access(runtime, os.W_OK):
        folder = Path(runtime) / f"distributio-{mark}"
    else:
        folder = Path(f"/tmp/distributio-{os.geteuid()}-{mark}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise RunnerError("engine-error", f"{folder} belongs to somebody else; remove it, then start the agent again")
    folder.chmod(0o700)
    return folder


def _version(program: str, environment: dict[str, str], *arguments: str) -> str:
    """What a program says its version is; nothing if it cannot be asked."""
    try:
        done = subprocess.run(
            [program, *arguments],
            env=environment,
            capture_output=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def _podman(data: Path, environment: dict[str, str], program: str, runtime: str) -> Engine:
    """Our own podman with one low-level runtime."""
    runs = run_folder(data, environment)
    manager = "systemd" if Path("/run/systemd/system").is_dir() and _systemd_reachable(environment) else "cgroupfs"
    configuration = _CONFIGURATION.format(cgroup_manager=manager)
    file = data / "containers.conf"
    if not file.exists() or file.read_text() != configuration:
        file.write_text(configuration)
    return Engine(
        kind="podman",
        version=_version(program, environment, "version", "--format", "{{.Client.Version}}"),
        command=[
            program,
            "--log-level",
            "error",
            "--root",
            str(data / "storage"),
            "--runroot",
            str(runs),
            "--tmpdir",
            str(runs / "t"),
            "--storage-driver",
            "overlay",
            "--runtime",
            runtime,
        ],
        environment=environment,
        rootless=os.geteuid() != 0,
        runtime=runtime,
        storage=str(data),
        runs=str(runs),
        pause_file=str(runs / "t" / "pause.pid") if os.geteuid() != 0 else "",
    )


def _systemd_reachable(environment: Mapping[str, str]) -> bool:
    """Whether a systemd that would make groups for us can be asked: the system's for root, else the user's own."""
    bus = Path(environment.get("XDG_RUNTIME_DIR", "/nonexistent")) / "bus"
    return os.geteuid() == 0 or bus.exists()


def candidates(data: Path, given: Mapping[str, str], prefer: str = "") -> Iterator[Engine]:
    """The engines that could serve, best first: podman with each runtime, then docker. `data` is the agent's own folder
    for engines; `prefer` keeps to one kind."""
    if platform.system() != "Linux":
        return
    (data / "tmp").mkdir(parents=True, exist_ok=True)
    environment = engine_environment(given, data)
    podman = shutil.which("podman", path=environment["PATH"])
    if podman and prefer in ("", "podman"):
        for runtime in ("crun", "runc"):
            if shutil.which(runtime, path=environment["PATH"]):
                yield _podman(data, environment, podman, runtime)
    docker = shutil.which("docker", path=environment["PATH"])
    if docker and prefer in ("", "docker"):
        version = _version(docker, environment, "version", "--format", "{{.Server.Version}}")
        if version:
            yield Engine(kind="docker", version=version, command=[docker], environment=environment)
