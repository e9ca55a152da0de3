"""What a running container uses: processor time, memory, processes and disk, read from outside it.

Only the standard library is imported: the supervisor of every task loads this. Run as a program inside the engine's
user namespace (`podman unshare`), it measures and freezes what an ordinary user may not touch from outside.
"""

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OF_A_CONTAINER = re.compile("[0-9a-f]{64}")  # engines name a container's groups by its id
_BLOCK = 512
_LEAST_PER_ENTRY = 4096  # an empty file costs the disk something too
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage:
    """The most and latest of what has been seen of a container."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.memory_bytes = 0  # peak
        self.oom_kills = 0
        self.refused_processes = 0


def _read(path: Path) -> str:
    """A file of the kernel's, or nothing if it is gone or not for us."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _field(text: str, key: str) -> int:
    """The number after a word in `key number` lines, or 0."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


class Cgroups:
    """Where the kernel accounts for a container; empty where the engine could not make groups for it."""

    def __init__(self, pid: int) -> None:
        self.folders: dict[str, Path] = {}
        for controllers, path in _membership(str(pid)):
            if not _OF_A_CONTAINER.search(path):
                continue  # it is still being moved there, or the engine could not make one
            for controller in controllers.split(","):
                folder = _CGROUPS / controller / path.lstrip("/")
                if folder.is_dir():
                    self.folders[controller] = folder

    @property
    def limits_memory(self) -> bool:
        """Whether the kernel itself holds the container to a memory limit."""
        for controller, file in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
            said = _read(self.folders[controller] / file).strip() if controller in self.folders else ""
            if said.isdigit() and int(said) < 1 << 60:
                return True
        return False

    @property
    def limits_processes(self) -> bool:
        """Whether the kernel itself limits how many processes the container has."""
        return any(_read(folder / "pids.max").strip().isdigit() for folder in self.folders.values())

    @property
    def limits_cpu(self) -> bool:
        """Whether the kernel itself limits processor time."""
        for folder in self.folders.values():
            quota = _read(folder / "cpu.cfs_quota_us").strip() or _read(folder / "cpu.max").partition(" ")[0]
            if quota.isdigit():
                return True
        return False

    def update(self, usage: Usage) -> None:
        """Take what the groups say now; files that are gone leave what was seen before."""
        for folder in self.folders.values():
            peak = _read(folder / "memory.max_usage_in_bytes") or _read(folder / "memory.peak")
            if not peak.strip():
                peak = _read(folder / "memory.current")
            usage.memory_bytes = max(usage.memory_bytes, int(peak) if peak.strip().isdigit() else 0)
            spent = _read(folder / "cpuacct.usage").strip()
            seconds = int(spent) / 1e9 if spent.isdigit() else _field(_read(folder / "cpu.stat"), "usage_usec") / 1e6
            usage.cpu_seconds = max(usage.cpu_seconds, seconds)
            kills = _read(folder / "memory.oom_control") + _read(folder / "memory.events")
            usage.oom_kills = max(usage.oom_kills, _field(kills, "oom_kill"))
            usage.refused_processes = max(usage.refused_processes, _field(_read(folder / "pids.events"), "max"))


def _membership(pid: str) -> list[tuple[str, str]]:
    """The control groups of a process: controllers ("" for the unified hierarchy) and path."""
    lines = [line.split(":", 2) for line in _read(Path("/proc") / pid / "cgroup").splitlines()]
    return [(line[1].removeprefix("name="), line[2]) for line in lines if len(line) == 3]


# --- by process, where there are no groups ------------------------------------------------------------------------


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on, or nothing if the process is gone."""
    return _read(Path(f"/proc/{pid}/stat")).rpartition(") ")[2].split()


def parent(pid: int) -> tuple[int, str]:
    """A process's parent and its name; (0, "") when the process is gone."""
    fields = _stat(pid)
    if len(fields) < 2 or fields[0] == "Z":
        return 0, ""
    return int(fields[1]), _read(Path(f"/proc/{fields[1]}/comm")).strip()


def descendants(pid: int) -> list[int]:
    """A process and everything below it. In a container the first process inherits what is orphaned, so this is all."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if len(fields) > 1:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += children.get(one, [])
    return found


def update_from_processes(usage: Usage, pid: int) -> int:
    """Take what the processes of a container use now, and return their memory. Shared pages count in each of them."""
    cpu, memory = 0.0, 0
    for one in descendants(pid):
        fields = _stat(one)
        if len(fields) > 21:
            cpu += sum(int(fields[i]) for i in (11, 12, 13, 14)) / _TICKS
            memory += int(fields[21]) * _PAGE
    usage.cpu_seconds = max(usage.cpu_seconds, cpu)
    usage.memory_bytes = max(usage.memory_bytes, memory)
    return memory


def proportional_memory(pid: int) -> int:
    """The memory of a container's processes with shared pages counted once. Needs rights over them."""
    return sum(
        int(line.split()[1]) * 1024
        for one in descendants(pid)
        for line in _read(Path(f"/proc/{one}/smaps_rollup")).splitlines()
        if line.startswith(("Pss:", "SwapPss:"))
    )


def signal_all(pid: int, number: int) -> None:
    """Signal every process of a container, again until no new one has appeared. Needs rights over them."""
    done: set[int] = set()
    while todo := [one for one in descendants(pid) if one not in done]:
        for one in todo:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself in between
                os.kill(one, number)
            done.add(one)


# --- disk ---------------------------------------------------------------------------------------------------------


def folder_size(paths: list[str]) -> int:
    """The bytes that lie under some folders, links not followed, files with several names counted once, holes counted
    as if they were filled (results are sent whole). Raises PermissionError where something cannot be looked into."""
    total = 0
    seen: set[tuple[int, int]] = set()
    waiting = list(paths)
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    total += max(status.st_size, status.st_blocks * _BLOCK, _LEAST_PER_ENTRY)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed while we looked
    return total


def answer(verb: str, arguments: list[str]) -> int:
    """What is asked of a helper: `size FOLDER...`, `entries FOLDER`, `memory PID`; `kill`, `stop`, `continue` PID."""
    if verb == "size":
        return folder_size(arguments)
    if verb == "entries":
        return len(os.listdir(arguments[0]))
    pid = int(arguments[0])
    if verb == "memory":
        return proportional_memory(pid)
    if verb == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        signal_all(pid, signal.SIGSTOP if verb == "stop" else signal.SIGCONT)
    return 0


class Inside:
    """A helper process inside the engine's user namespace, where the files and processes of containers are ours to see.

    The namespace belongs to the user who runs the engine, so its user may enter it; `pause_pid` is a process in it.
    """

    def __init__(self, pause_pid: int) -> None:
        asking, self._questions = os.pipe()
        self._answers, answering = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._questions)
            os.close(self._answers)
            try:
                _enter_user_namespace(pause_pid)
                _serve(asking, answering)
            finally:
                os._exit(1)
        os.close(asking)
        os.close(answering)

    def ask(self, verb: str, *arguments: str) -> int | None:
        """Ask, and wait for the answer; None if there is none."""
        try:
            os.write(self._questions, "\0".join((verb, *arguments)).encode() + b"\n")
        except BrokenPipeError:
            return None  # it could not enter
        said = os.read(self._answers, 64)
        return int(said) if said.strip().isdigit() else None


def _enter_user_namespace(pid: int) -> None:
    """Join the user namespace of a process."""
    import ctypes  # only the helper needs it

    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(namespace, 0x10000000):  # CLONE_NEWUSER
        raise OSError(ctypes.get_errno(), "the engine's user namespace cannot be entered")
    os.close(namespace)


def _serve(asking: int, answering: int) -> None:
    """Answer questions until nobody asks any more."""
    with os.fdopen(asking) as questions:
        for line in questions:
            verb, *arguments = line.rstrip("\n").split("\0")
            try:
                said = str(answer(verb, arguments))
            except OSError as odd:
                said = odd.__class__.__name__
            os.write(answering, said.encode() + b"\n")


def clear(storage: Path) -> None:
    """Remove an engine's storage folder, which it mounts over itself, with everything in it."""
    import shutil  # only the last of all commands needs these
    import subprocess

    # Not os.path.ismount, which does not see that a folder is mounted over itself.
    mounted = [line.split()[4] for line in _read(Path("/proc/self/mountinfo")).splitlines()]
    if str(storage / "overlay") in mounted:
        subprocess.run(["umount", storage / "overlay"], check=True, stdin=subprocess.DEVNULL)
    shutil.rmtree(storage)


def main(arguments: list[str]) -> int:
    """Answer one question, or clear a storage folder, for those who are inside already."""
    if arguments[0] == "clear":
        clear(Path(arguments[1]))
        return 0
    sys.stdout.write(f"{answer(arguments[0], arguments[1:])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
