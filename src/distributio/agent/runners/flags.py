"""Which options a job's container is created with: the sandbox, the limits, and what the job itself asks for.

Pure: from the job's spec, what the self-test showed of the engine, and what the image says of itself, to an argument
list. Everything a stranger wrote is either a value after `=`, checked not to turn into something else, or comes after
the image.
"""

import json
import posixpath
import re

from msgspec import Struct

from distributio.agent.runners.contract import RunnerError
from distributio.wire.native import Spec

RESULTS = "/root/shared/results"
RESULTS_VARIABLE = "DISTRIBUTIO_RESULTS"
LABEL = "io.distributio"
_OPEN_FILES = 4096
_PROCESSES = 4096
_MOST_VOLUMES = 32
_MEGABYTE = 1 << 20
_SIZE = re.compile(r"(\d+)([kmg]?)b?")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_ULIMIT_VALUE = re.compile(r"\d{1,15}(:\d{1,15})?")
_ULIMITS = frozenset({"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nofile", "nproc", "rss", "sigpending",
                      "stack"})  # fmt: skip
_TMPFS_WORDS = frozenset({"rw", "ro", "exec", "noexec", "nosuid", "nodev", "noatime"})
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?")


class Profile(Struct, frozen=True, kw_only=True):
    """What the self-test showed of an engine: which options it takes, and which protections are in force with them."""

    kind: str
    uid_map: str = ""  # "0:HOST:SIZE"; empty: no user namespace of its own
    seccomp: bool = True
    limit_flags: bool = True  # whether the engine takes --memory, --pids-limit and --cpus
    memory_held: bool = True  # by the kernel
    processes_held: bool = True
    cpu_held: bool = True
    suspend: str = "engine"  # or "signals", or nothing
    open_files: int = _OPEN_FILES
    sandbox: list[str] = []
    missing: list[str] = []


class ImageFacts(Struct, frozen=True, kw_only=True):
    """What must be known of an image to run it."""

    id: str
    user: str = ""
    workdir: str = ""
    volumes: list[str] = []


def checked_path(path: str, what: str) -> str:
    """An absolute path inside the container that means only itself to an engine: a colon would make it a mount of the
    host's."""
    if not path.startswith("/") or posixpath.normpath(path) != path or path.startswith("//") or path == "/":
        raise RunnerError("spec-bad", f"{what} {path!r} is not a plain absolute path inside the container")
    if any(c in ":," or ord(c) < 0x20 for c in path) or len(path) > 1024:
        raise RunnerError("spec-bad", f"{what} {path!r} has a colon, a comma or a control character in it")
    return path


def _size(text: str) -> int:
    """A size as docker writes it."""
    match = _SIZE.fullmatch(text.lower())
    if match is None:
        raise RunnerError("spec-bad", f"{text!r} is not a size; write it like 64m")
    return int(match[1]) * _UNITS[match[2]]


def tmpfs_option(path: str, options: str, memory_bytes: int) -> str:
    """A --tmpfs value: the job's wishes, never larger than its memory, never with set-user-id programs or devices."""
    size, kept = memory_bytes // 4, ["nosuid", "nodev"]
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if key == "size" and equals:
            size = memory_bytes if value.endswith("%") else min(_size(value), memory_bytes)
        elif key in ("mode", "uid", "gid") and value.isdigit():
            kept.append(option)
        elif option not in _TMPFS_WORDS:
            raise RunnerError(
                "spec-bad", f"the tmpfs option {option!r} is not known; size, mode, uid, gid, ro, exec are"
            )
        elif option not in kept:
            kept.append(option)
    return f"{path}:{','.join(kept)},size={max(size, _MEGABYTE)}"


def _mounts(spec: Spec, image: ImageFacts, kind: str) -> list[str]:
    """Where the container can write: the results, memory for temporary files, and what inputs and the image need."""
    memory = spec.limits.memory_bytes
    tmpfs = {"/tmp": "mode=1777", "/var/tmp": "mode=1777", "/run": f"size={8 * _MEGABYTE}"}
    for path, options in spec.tmpfs.items():
        tmpfs[checked_path(path, "the tmpfs")] = options
    volumes = [RESULTS]
    for one in spec.inputs:
        path = checked_path(one.path, "the input")
        over = next((place for place in tmpfs if path == place or path.startswith(place + "/")), "")
        if over:
            tmpfs.pop(over)  # an input there would be hidden
            volumes.append(over)
        elif not spec.writable_root and (not one.read_only or kind == "docker"):
            # docker copies nothing into a read-only root, only into volumes.
            volumes.append(checked_path(path if one.is_folder else posixpath.dirname(path), "the folder of the input"))
    for path in image.volumes:
        try:
            place = checked_path(posixpath.normpath(path), "the image's volume")
        except RunnerError as bad:
            raise RunnerError("image-bad", str(bad)) from bad
        if kind == "podman":  # docker makes volumes of these by itself
            volumes.append(place)
    if len(volumes) > _MOST_VOLUMES:
        raise RunnerError("spec-bad", f"{len(volumes)} writable folders; at most {_MOST_VOLUMES} are possible")
    arguments = [f"--volume={path}" for path in dict.fromkeys(volumes)]
    for path, options in tmpfs.items():
        if path not in volumes:
            arguments.append("--tmpfs=" + tmpfs_option(path, options, memory))
    return arguments


def copied_to(path: str, create: list[str], kind: str) -> str:
    """The folder that an input is copied to below: with docker, the volume made for it."""
    volumes = [argument.removeprefix("--volume=") for argument in create if argument.startswith("--volume=")]
    around = [place for place in volumes if path == place or path.startswith(place + "/")]
    return max(around, key=len) if kind == "docker" and around else "/"


def runs_as_root(spec: Spec) -> bool:
    """Whether the job's first process is root in its container, as it is unless the job says otherwise."""
    return spec.user.partition(":")[0] in ("", "0", "root")


def _ulimits(spec: Spec, profile: Profile) -> list[str]:
    """Resource limits. All of ours are always given, because one on the command line replaces an engine's whole
    list."""
    most_files = profile.open_files
    processes = _PROCESSES if profile.processes_held else spec.limits.processes
    limits = {
        "nofile": f"{most_files}:{most_files}",
        "nproc": f"{processes}:{processes}",
        "core": "0:0",
        "fsize": f"{spec.limits.disk_bytes}:{spec.limits.disk_bytes}",
    }
    for name, value in spec.ulimits.items():
        if name not in _ULIMITS or not _ULIMIT_VALUE.fullmatch(value):
            raise RunnerError(
                "spec-bad", f"the ulimit {name}={value} is not possible; {', '.join(sorted(_ULIMITS))} are"
            )
        soft, _, hard = value.partition(":")
        most = int(limits[name].partition(":")[2]) if name in limits else None
        bounded = [int(one) if most is None else min(int(one), most) for one in (soft, hard or soft)]
        limits[name] = f"{bounded[0]}:{bounded[1]}"
    return [f"--ulimit={name}={value}" for name, value in limits.items()]


def _sandbox(profile: Profile, seccomp: str) -> list[str]:
    """What keeps the container from the host and from the network."""
    arguments = [
        "--pull=never", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--ipc=private", "--hostname=job",
        "--no-healthcheck", "--oom-score-adj=500", "--stop-timeout=0", "--log-driver=none",
    ]  # fmt: skip
    if profile.seccomp:
        arguments.append(f"--security-opt=seccomp={seccomp}")
    if profile.kind == "podman":
        arguments += ["--no-hosts", "--image-volume=ignore", "--http-proxy=false"]
        if profile.uid_map:
            arguments += [f"--uidmap={profile.uid_map}", f"--gidmap={profile.uid_map}"]
    return arguments


def _limits(spec: Spec, profile: Profile) -> list[str]:
    """Memory, processes and processor time, where the engine can hold them."""
    limits = spec.limits
    arguments = [f"--shm-size={min(spec.shm_bytes, limits.memory_bytes)}", *_ulimits(spec, profile)]
    if profile.limit_flags:
        arguments += [
            f"--memory={limits.memory_bytes}", f"--memory-swap={limits.memory_bytes}",
            f"--pids-limit={limits.processes}", f"--cpus={limits.cpus:g}",
        ]  # fmt: skip
    if limits.gpus:
        arguments.append("--device=nvidia.com/gpu=all" if profile.kind == "podman" else f"--gpus={limits.gpus}")
    return arguments


def _network(spec: Spec, profile: Profile, *, allowed: bool, rootless: bool) -> str:
    """No network, unless the job asks for it and the owner allows it."""
    if not spec.network:
        return "--network=none"
    if not allowed:
        raise RunnerError("network-not-allowed", "the job asks for the network, which this host's owner does not lend")
    return "--network=slirp4netns" if profile.kind == "podman" and rootless else "--network=bridge"


def _process(spec: Spec, image: ImageFacts, kind: str) -> tuple[list[str], list[str]]:
    """How the first process is started: options, and what follows the image."""
    arguments = []
    if spec.user and not _USER.fullmatch(spec.user):
        raise RunnerError("spec-bad", f"{spec.user!r} is not a user; write NAME, UID or UID:GID")
    if kind == "docker" and not runs_as_root(spec):
        raise RunnerError(
            "user-not-possible", "with docker, jobs run as root in their container; podman takes any user"
        )
    # Root in the container has no capability and is nobody outside it, but owns the results folder.
    arguments.append(f"--user={spec.user or '0:0'}")
    if spec.workdir or not image.workdir:
        arguments.append(
            "--workdir=" + (checked_path(spec.workdir, "the working folder") if len(spec.workdir) > 1 else "/")
        )
    for name, value in ({RESULTS_VARIABLE: RESULTS} | spec.environment).items():
        if not name or "=" in name:
            raise RunnerError("spec-bad", f"{name!r} cannot be the name of an environment variable")
        arguments.append(f"--env={name}={value}")
    if spec.init:
        arguments.append("--init")
    command = list(spec.command)
    if spec.entrypoint is not None:
        first = spec.entrypoint[0] if spec.entrypoint else ""
        # podman reads what begins with a bracket as JSON, so it is given JSON always.
        arguments.append("--entrypoint=" + (json.dumps([first]) if kind == "podman" and first else first))
        command = [*spec.entrypoint[1:], *command]
    return arguments, command


def create_arguments(
    spec: Spec,
    image: ImageFacts,
    profile: Profile,
    *,
    name: str,
    labels: dict[str, str],
    seccomp: str,
    pidfile: str,
    network_allowed: bool,
    rootless: bool,
) -> list[str]:
    """Everything that follows `create`."""
    options, command = _process(spec, image, profile.kind)
    arguments = [
        f"--name={name}",
        *(f"--label={LABEL}.{key}={value}" for key, value in labels.items()),
        *_sandbox(profile, seccomp),
        _network(spec, profile, allowed=network_allowed, rootless=rootless),
        *_limits(spec, profile),
        *_mounts(spec, image, profile.kind),
        *options,
    ]
    if not spec.writable_root:
        arguments.append("--read-only")
    if profile.kind == "podman":
        arguments += ["--read-only-tmpfs=false", f"--pidfile={pidfile}"]
    arguments += [image.id, *command]
    if any("\0" in argument for argument in arguments):
        raise RunnerError("spec-bad", "a NUL character in the command or the environment cannot be passed on")
    return arguments
