"""What this machine is, and how busy and how warm it is now."""

import functools
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types

from distributio.agent.policy import Machine

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "armv7l": "arm/v7"}
# What the two halves of the benchmark take on a core of 5 GFLOPS.
_ARITHMETIC_SECONDS = 0.0056
_HASHING_SECONDS = 0.0045
_BENCHMARK_TRIES = 12
_ZEROS = bytes(4 << 20)
_SENSORS = ("coretemp", "k10temp", "cpu_thermal", "zenpower", "acpitz")


def platform_name() -> str:
    """The platform as images name it, such as linux/amd64."""
    machine = platform.machine().lower()
    return f"{platform.system().lower()}/{_ARCHITECTURES.get(machine, machine)}"


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model", "Hardware"}:
            return " ".join(value.split())
    return platform.processor()


def kernel() -> str:
    """The kernel's name and release."""
    return f"{platform.system()} {platform.release()}"


def cpus() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def gflops() -> float:
    """How fast one processor is, in units that credit is counted in; measured once, in a fifth of a second.

    Half of it is arithmetic in Python, half hashing in C without special instructions; the best of several short tries,
    so that what else the machine does matters little. The scale is such that a server's core of 2021 is worth about 5."""
    tries = [(_arithmetic_seconds(), _hashing_seconds()) for _ in range(_BENCHMARK_TRIES)]
    arithmetic, hashing = (min(times) for times in zip(*tries, strict=True))
    return round(5.0 * math.sqrt(_ARITHMETIC_SECONDS / arithmetic * _HASHING_SECONDS / hashing), 2)


def _arithmetic_seconds() -> float:
    started = time.perf_counter()
    value = 0.5
    for _ in range(200_000):
        value = value * 0.999999 + 0.000001
    return time.perf_counter() - started


def _hashing_seconds() -> float:
    started = time.perf_counter()
    hashlib.blake2b(_ZEROS).digest()
    return time.perf_counter() - started


def memory_bytes() -> int:
    """The memory, within the limit of the control group we run in, if there is one."""
    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def gpus() -> int:
    """Graphics processors that containers can be given: those described for CDI, else those nvidia-smi lists."""
    described = set()
    for folder in (Path("/etc/cdi"), Path("/var/run/cdi")):
        for path in folder.glob("*.json") if folder.is_dir() else ():
            described |= _devices(path)
    if described:
        return len(described)
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0  # installed without a working driver: nothing to lend
    return sum(1 for line in listed.splitlines() if line.startswith("GPU "))


def _devices(path: Path) -> set[str]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kind = str(document["kind"])
        names = [str(device["name"]) for device in document["devices"]]
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # another program's file that is not what the standard says describes no device
    return {f"{kind}={name}" for name in names if name != "all" and "gpu" in kind}


class Sensors:
    """Looks at the machine from time to time. What our own tasks use is not the owner's load."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._gpus = gpus()
        self._seen_at = time.monotonic()
        self._busy_seconds = _busy_seconds()
        self._our_seconds: dict[int, float] = {}
        self._owner_load = 0.0

    def look(self, our_seconds: dict[int, float]) -> Machine:
        """How the machine is now; `our_seconds` has the processor time of each of our tasks, as far as it is known."""
        self._measure_load(our_seconds)
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        local = datetime.now().astimezone()
        return Machine(
            cpus=cpus(),
            memory_bytes=memory_bytes(),
            disk_free_bytes=shutil.disk_usage(self._data).free,
            gpus=self._gpus,
            owner_load=self._owner_load,
            on_battery=battery is not None and battery.power_plugged is False,
            celsius=_celsius(),
            weekday=local.weekday(),
            minute=local.hour * 60 + local.minute,
        )

    def _measure_load(self, our_seconds: dict[int, float]) -> None:
        now = time.monotonic()
        elapsed = now - self._seen_at
        if elapsed < 0.5:
            return
        busy = _busy_seconds()
        ours = sum(max(0.0, used - self._our_seconds.get(task, 0.0)) for task, used in our_seconds.items())
        load = max(0.0, (busy - self._busy_seconds - ours) / elapsed)
        self._owner_load = self._owner_load * 0.7 + load * 0.3  # a moment's peak is not work
        self._seen_at, self._busy_seconds, self._our_seconds = now, busy, dict(our_seconds)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # Work at low priority is somebody's background, not what an owner waits for.
    return float(times.user + times.system)


def _celsius() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    found = psutil.sensors_temperatures()
    for name in _SENSORS:
        if found.get(name):
            return max(float(entry.current) for entry in found[name])
    return None
