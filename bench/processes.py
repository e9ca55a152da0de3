"""How much processor time and memory groups of processes used, read from /proc, and how much everybody else used."""

import os
import time
from pathlib import Path

from msgspec import Struct

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Spent(Struct, frozen=True, kw_only=True):
    """Processor seconds and the clock at one instant, or between two."""

    at: float
    server: float
    database: float
    generator: float
    machine: float  # everybody, ourselves included

    def since(self, before: "Spent") -> "Spent":
        """What was spent from `before` to here."""
        return Spent(
            at=self.at - before.at,
            server=self.server - before.server,
            database=self.database - before.database,
            generator=self.generator - before.generator,
            machine=self.machine - before.machine,
        )

    @property
    def other_cores(self) -> float:
        """How many cores were busy with what is not ours."""
        ours = self.server + self.database + self.generator
        return max(0.0, self.machine - ours) / self.at if self.at > 0 else 0.0


def read(server: int, database: int | None) -> Spent:
    """What the server, the database (by the number of its first process) and we have used so far."""
    own = os.times()
    return Spent(
        at=time.monotonic(),
        server=_seconds(server),
        database=_seconds(database) if database is not None else 0.0,
        generator=own.user + own.system,
        machine=_machine_seconds(),
    )


def _machine_seconds() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[:7])
    return (user + nice + system + irq + softirq) / TICK


def _seconds(first: int) -> float:
    """Of a process and those it started, the ended ones included once it has waited for them."""
    ticks = 0
    for index, process in enumerate(family(first)):
        fields = _stat(process)
        if fields:
            own, ended = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
            ticks += own + (ended if index == 0 else 0)
    return ticks / TICK


def family(first: int) -> list[int]:
    """A process and its children."""
    try:
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    except FileNotFoundError:
        children = []
    return [first, *map(int, children)]


def _stat(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has ended since it was listed


def resident_bytes(process: int) -> int:
    """Memory a process has in use."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
