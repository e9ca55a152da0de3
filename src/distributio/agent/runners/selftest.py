"""What an engine can really do on this host: a container is run and looked at from outside.

Installed is not the same as working, and an option that is taken is not always obeyed. The self-test's image holds one
program of a few hundred bytes, written here, so that it needs no network and no image of anybody's. What it showed is
remembered for as long as engine, kernel and our options stay the same.
"""

import gzip
import hashlib
import io
import json
import os
import platform
import resource
import tarfile
import time
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from distributio.agent.runners import archive, usage
from distributio.agent.runners.contract import RunnerError
from distributio.agent.runners.engine import Engine, words_of
from distributio.agent.runners.flags import ImageFacts, Profile, create_arguments
from distributio.wire.native import Limits, Spec

REVISION = 1  # of this test and of the options: a higher one makes every host test again
_UID_BASE = 1_900_000_000  # above what systemd, directories and subordinate ranges hand out
_UID_COUNT = 65_536
_PATIENCE = 10.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "AMD64": "amd64", "arm64": "arm64"}
# write(1, "ok\n", 3); with an argument: pause for ever; else exit(0)
_PROGRAMS = {
    "amd64": (
        62,
        "b801000000bf01000000488d351f000000ba030000000f05833c24017f09b83c00000031ff0f05b8220000000f05ebf76f6b0a",
    ),
    "arm64": (
        183,
        "200080d221020010620080d2080880d2010000d4e30340f97f0400f18c000054"
        "000080d2a80b80d2010000d4000080d2010080d2020080d2030080d2280980d2010000d4faffff17"
        "6f6b0a00",
    ),
}


class Finding(Struct, frozen=True, kw_only=True):
    """What the self-test found: a profile, or why there is none."""

    key: str
    description: str
    profile: Profile | None = None
    problem: str = ""


def digest_of(content: bytes) -> str:
    """How content is named."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def host_platform() -> str:
    """This machine, as images name it."""
    machine = platform.machine()
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


def program(architecture: str) -> bytes:
    """A static ELF program: one header, one segment, a few instructions."""
    machine, code = _PROGRAMS[architecture]
    text = bytes.fromhex(code)
    start, header = 0x400000, 64 + 56

    def number(value: int, width: int) -> bytes:
        return value.to_bytes(width, "little")

    size = number(header + len(text), 8)
    return b"".join(
        (
            b"\x7fELF\x02\x01\x01" + bytes(9) + number(2, 2) + number(machine, 2) + number(1, 4),
            number(start + header, 8) + number(64, 8) + bytes(8 + 4),
            number(64, 2) + number(56, 2) + number(1, 2) + bytes(6),
            number(1, 4) + number(5, 4) + bytes(8) + number(start, 8) * 2 + size * 2 + number(0x1000, 8),
            text,
        )
    )


def write_layout(layout: Path, architecture: str) -> str:
    """Write the self-test's image into a layout folder and return its manifest's digest."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("tmp", "root", "root/shared", "root/shared/results"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        content = program(architecture)
        info = tarfile.TarInfo("selftest")
        info.size, info.mode = len(content), 0o755
        tar.addfile(info, io.BytesIO(content))
    unpacked = packed.getvalue()
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(content: bytes) -> tuple[str, int]:
        digest = digest_of(content)
        (blobs / digest.removeprefix("sha256:")).write_bytes(content)
        return digest, len(content)

    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/selftest"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(unpacked)]},
    }
    kind = "application/vnd.oci.image"
    config_digest, config_size = put(json.dumps(config).encode())
    layer_digest, layer_size = put(gzip.compress(unpacked, mtime=0))
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", "digest": config_digest, "size": config_size},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar+gzip", "digest": layer_digest, "size": layer_size}],
    }
    return put(json.dumps(manifest).encode())[0]


# --- looking at it ------------------------------------------------------------------------------------------------


def _read(pid: int, file: str) -> str:
    """What the kernel says of a process; nothing where it will not."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return ""


def _observe(pid: int, profile: Profile) -> Profile:
    """Compare what was asked for with what the kernel says of the running container."""
    status = dict(line.split(":\t", 1) for line in _read(pid, "status").splitlines() if ":\t" in line)
    groups = usage.Cgroups(pid)
    root_is = _read(pid, "uid_map").split()
    interfaces = [line.partition(":")[0].strip() for line in _read(pid, "net/dev").splitlines()[2:]]
    root_mount = next((line.split() for line in _read(pid, "mountinfo").splitlines() if line.split()[4] == "/"), [])
    checks = [
        (
            "userns",
            len(root_is) == 3 and root_is[1] != str(os.geteuid()),
            "root in the container is a user of this host",
        ),
        ("no-capabilities", status.get("CapEff", "").strip("0") == "", "the container keeps capabilities"),
        ("no-new-privileges", status.get("NoNewPrivs") == "1", "set-user-id programs would work"),
        ("seccomp", status.get("Seccomp") == "2", "all system calls are open"),
        ("no-network", interfaces == ["lo"], "the network cannot be kept from jobs"),
        ("read-only", not root_mount or "ro" in root_mount[5].split(","), "the image's files can be written"),
        ("memory", groups.limits_memory, "the kernel does not hold the memory limit; memory is watched instead"),
        ("processes", groups.limits_processes, "the kernel limits processes by user only"),
        ("cpu", groups.limits_cpu, "the processor limit is not in force; jobs run at low priority"),
    ]
    return structs.replace(
        profile,
        memory_held=groups.limits_memory,
        processes_held=groups.limits_processes,
        cpu_held=groups.limits_cpu,
        sandbox=[word for word, holds, _ in checks if holds],
        missing=[f"{word}: {why}" for word, holds, why in checks if not holds],
    )


def _suspends(engine: Engine, name: str, pid: int) -> str:
    """How a container can be suspended: by the engine, or by stopping its processes."""
    if engine.run("pause", name).returncode == 0:
        return "engine" if engine.run("unpause", name).returncode == 0 else ""
    return "signals" if engine.kind == "podman" and pid else ""


def _try(engine: Engine, image: ImageFacts, profile: Profile, folder: Path, seccomp: str) -> Profile:
    """Run the self-test with these options and say what was seen."""
    name = f"distributio-selftest-{os.getpid()}-{time.monotonic_ns()}"
    pidfile = folder / "selftest.pid"
    pidfile.unlink(missing_ok=True)
    arguments = create_arguments(
        Spec(command=["wait"], limits=Limits(memory_bytes=64 << 20, processes=32)),
        image,
        profile,
        name=name,
        labels={"selftest": "1"},
        seccomp=seccomp,
        pidfile=str(pidfile),
        network_allowed=False,
        rootless=engine.rootless,
    )
    try:
        engine.ask("create", *arguments)
        engine.ask("start", name)
        state = engine.inspect(name).get("State", {})
        pid = int(state.get("Pid") or 0)
        if not state.get("Running"):
            raise RunnerError("engine-error", f"the self-test ended at once with exit code {state.get('ExitCode')}")
        seen = _observe(pid, profile) if os.path.exists(f"/proc/{pid}/status") else profile
        seen = structs.replace(seen, suspend=_suspends(engine, name, pid))
        return (
            seen if seen.suspend else structs.replace(seen, missing=[*seen.missing, "suspend: jobs cannot be paused"])
        )
    finally:
        removed = engine.run("rm", "-f", "-v", name)
        if removed.returncode and "no such container" not in words_of(removed).lower():
            raise RunnerError("engine-error", f"the self-test cannot be removed: {words_of(removed)}")


def _uid_maps(engine: Engine) -> list[str]:
    """User namespaces to try, best first: ids that are nobody's here, then none of its own."""
    if engine.kind != "podman":
        return [""]
    if not engine.rootless:
        return [f"0:{_UID_BASE}:{_UID_COUNT}", ""]
    # In podman's own namespace id 0 is the user, and from 1 on come the subordinate ids.
    done = engine.run("unshare", "cat", "/proc/self/uid_map")
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    subordinate = min(sum(int(line[2]) for line in lines if len(line) == 3 and line[0] != "0"), _UID_COUNT)
    return [f"0:1:{subordinate}", ""] if subordinate else [""]


def _key(engine: Engine) -> str:
    """What the finding depends on."""
    subordinate = [path.read_text() for path in (Path("/etc/subuid"), Path("/etc/subgid")) if path.exists()]
    parts = [engine.description, engine.command[0], str(os.geteuid()), platform.release(), str(REVISION), *subordinate]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def remembered(engine: Engine, folder: Path) -> Finding | None:
    """What an earlier self-test of the same engine found."""
    path = folder / f"selftest-{engine.kind}-{engine.runtime or 'default'}.json"
    try:
        finding = msgspec.json.decode(path.read_bytes(), type=Finding)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return finding if finding.key == _key(engine) else None


def examine(engine: Engine, folder: Path, seccomp: str) -> Finding:
    """Test an engine and remember what was found."""
    problems: list[str] = []
    profile: Profile | None = None
    try:
        image = _load(engine, folder)
        profile = _first_that_works(engine, image, folder, seccomp, problems)
    except RunnerError as refusal:
        problems.append(str(refusal))
    finding = Finding(
        key=_key(engine),
        description=engine.description,
        profile=profile,
        problem="" if profile else "; ".join(problems),
    )
    path = folder / f"selftest-{engine.kind}-{engine.runtime or 'default'}.json"
    path.write_bytes(msgspec.json.encode(finding))
    return finding


def _load(engine: Engine, folder: Path) -> ImageFacts:
    """Load the self-test's image."""
    architecture = host_platform().partition("/")[2]
    if architecture not in _PROGRAMS:
        raise RunnerError("engine-error", f"there is no self-test for {architecture} machines")
    description = archive.describe(folder, write_layout(folder, architecture))
    engine.load(lambda stream: archive.write_archive(description, folder, stream))
    return ImageFacts(id=description.name)


def _first_that_works(
    engine: Engine, image: ImageFacts, folder: Path, seccomp: str, problems: list[str]
) -> Profile | None:
    """The strongest set of options the engine runs the self-test with."""
    files = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for uid_map in _uid_maps(engine):
        for limit_flags, with_seccomp in ((True, True), (False, True), (True, False), (False, False)):
            asked = Profile(
                kind=engine.kind, uid_map=uid_map, seccomp=with_seccomp, limit_flags=limit_flags, open_files=files
            )
            try:
                return _try(engine, image, asked, folder, seccomp)
            except RunnerError as refusal:
                if str(refusal) not in problems:
                    problems.append(str(refusal))
                if "hybrid" in str(refusal):
                    return None  # the runtime refuses this machine, whatever the options
    return None
