"""What a machine's owner lends, and whether that holds now."""

import re
import tomllib
from typing import Any

import msgspec
from msgspec import Struct

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DISK_STEP_BYTES = 256 << 20  # free space is told in steps, so that not every written file is news


class PolicyError(ValueError):
    """The owner's policy cannot be read; the message names the line's key, what is wrong and an example."""


class OwnerPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The owner's limits. Sizes are written as 512m, 8g; zero for `cpus` and empty for a size: what the machine has,
    less what its owner needs."""

    cpus: float = 0.0
    memory: str = ""
    disk: str = "20g"
    disk_reserve: str = "2g"
    cache: str = "10g"
    gpus: int = 0
    hours: str = ""
    days: str = ""
    only_when_idle: bool = False
    idle_load: float = 0.25
    on_battery: bool = False
    max_celsius: float = 0.0
    network_allowed: bool = False
    projects: list[str] = []
    look_ahead: float = 1.0
    stream_logs: bool = True


class Machine(Struct, frozen=True, kw_only=True):
    """What is seen of the machine now."""

    cpus: int
    memory_bytes: int
    disk_free_bytes: int
    gpus: int = 0
    owner_load: float = 0.0  # processors kept busy by others than us
    on_battery: bool = False
    celsius: float | None = None
    weekday: int = 0  # Monday is 0, in the owner's time zone
    minute: int = 0  # of the day, likewise


class Allowed(Struct, frozen=True, kw_only=True):
    """What may be used now. `may_compute` False: suspend what runs. `why_not` says why in sentences."""

    cpus: float
    memory_bytes: int
    disk_bytes: int
    gpus: int = 0
    may_compute: bool = True
    network: bool = False
    projects: frozenset[str] = frozenset()  # empty: everyone's
    look_ahead: float = 1.0
    why_not: tuple[str, ...] = ()


def size_bytes(text: str, key: str = "size") -> int:
    """Read 512m, 8g, 1.5g or a plain number of bytes."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([bkmgt]?)(?:i?b)?\s*", text.lower())
    if match is None:
        raise PolicyError(f'{key}: {text!r} is not a size. Write for example "512m", "8g" or "1.5t".')
    return int(float(match[1]) * _UNITS[match[2]])


def parse(text: str) -> OwnerPolicy:
    """Read policy.toml and check every value in it."""
    try:
        data: dict[str, Any] = tomllib.loads(text)
        policy = msgspec.convert(data, OwnerPolicy)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"policy.toml is not TOML: {error}. A line is written as: cpus = 2") from error
    except msgspec.ValidationError as error:
        raise PolicyError(f"policy.toml: {error}. The keys are: {', '.join(OwnerPolicy.__struct_fields__)}.") from error
    for key in ("memory", "disk", "disk_reserve", "cache"):
        if value := getattr(policy, key):
            size_bytes(value, key)
    if policy.cpus < 0 or policy.gpus < 0 or not 0 <= policy.look_ahead <= 1:
        raise PolicyError("policy.toml: cpus and gpus are not negative, and look_ahead is between 0 and 1.")
    _hours(policy.hours)
    _days(policy.days)
    return policy


def lent(policy: OwnerPolicy, machine: Machine) -> Allowed:
    """What the owner lends at all, whatever the hour."""
    cpus = min(policy.cpus or machine.cpus, machine.cpus)
    memory = size_bytes(policy.memory) if policy.memory else machine.memory_bytes * 3 // 4
    free = max(0, machine.disk_free_bytes - size_bytes(policy.disk_reserve or "0"))
    disk = min(size_bytes(policy.disk) if policy.disk else free, free)
    return Allowed(
        cpus=cpus,
        memory_bytes=min(memory, machine.memory_bytes),
        disk_bytes=disk - disk % _DISK_STEP_BYTES,
        gpus=min(policy.gpus, machine.gpus),
        network=policy.network_allowed,
        projects=frozenset(policy.projects),
        look_ahead=policy.look_ahead,
    )


def allowed(policy: OwnerPolicy, machine: Machine, *, suspended: bool = False, computing: bool = False) -> Allowed:
    """What may be used at this moment. While `computing`, more load of the owner is borne than before starting, so
    that work does not stop and go on every second."""
    most = lent(policy, machine)
    why: list[str] = []
    if suspended:
        why.append("its owner has suspended this host (distributio host resume)")
    if policy.hours and not _within(_hours(policy.hours), machine.minute):
        why.append(f"it is outside the hours {policy.hours} (hours in policy.toml)")
    if policy.days and machine.weekday not in _days(policy.days):
        why.append(f"{_DAYS[machine.weekday]} is not among the days {policy.days} (days in policy.toml)")
    if machine.on_battery and not policy.on_battery:
        why.append("this computer runs on battery (on_battery in policy.toml)")
    bearable = policy.idle_load * (2 if computing else 1)
    if policy.only_when_idle and machine.owner_load > bearable * machine.cpus:
        why.append(f"its owner uses {machine.owner_load:.1f} of {machine.cpus} cpus (only_when_idle in policy.toml)")
    if policy.max_celsius and machine.celsius is not None and machine.celsius > policy.max_celsius:
        why.append(f"the processor is at {machine.celsius:.0f} °C (max_celsius in policy.toml)")
    return msgspec.structs.replace(most, may_compute=not why, why_not=tuple(why))


def forbidden(now: Allowed, why: str) -> Allowed:
    """The same, but nothing may run, for one more reason."""
    return msgspec.structs.replace(now, may_compute=False, why_not=(*now.why_not, why))


def cache_bytes(policy: OwnerPolicy) -> int:
    """How much of images and inputs may be kept for next time."""
    return size_bytes(policy.cache or "0")


def _hours(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s*", text)
    values = [int(part) for part in match.groups()] if match else []
    if not match or values[0] > 24 or values[2] > 24 or values[1] > 59 or values[3] > 59:
        raise PolicyError(f'hours: {text!r} cannot be read. Write for example "22:00-07:00".')
    return values[0] * 60 + values[1], values[2] * 60 + values[3]


def _within(hours: tuple[int, int] | None, minute: int) -> bool:
    if hours is None:
        return True
    start, end = hours
    return start <= minute < end if start <= end else minute >= start or minute < end


def _days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in text.lower().replace(" ", "").split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise PolicyError(f'days: {text!r} cannot be read. Write for example "mon-fri" or "sat,sun".')
        index = _DAYS.index(first)
        end = _DAYS.index(last) if dash else index
        while True:
            days.add(index % 7)
            if index % 7 == end:
                break
            index += 1
    return frozenset(days)


def template(cpus: float, memory: str, disk: str) -> str:
    """The policy.toml written when a host joins: every key, what it does, and its value."""
    return f"""\
# What this computer lends. Changes are noticed within a second; nothing needs to be restarted.

{f"cpus = {cpus:g}":<21} # processors; 0: all of them
{f'memory = "{memory}"':<21} # for all tasks together; "": three quarters of what is built in
{f'disk = "{disk}"':<21} # for all tasks together
disk_reserve = "2g"   # left free on the disk whatever else is allowed
cache = "10g"         # images and inputs kept for next time, as they are fetched; the oldest go first
gpus = 0

hours = ""            # such as "22:00-07:00"; "": always
days = ""             # such as "mon-fri" or "sat,sun"; "": every day
only_when_idle = false
idle_load = 0.25      # with only_when_idle: the share of the processors its owner may be using
on_battery = false
max_celsius = 0       # suspend above this temperature of the processor; 0: do not look

network_allowed = false   # whether tasks that ask for it may reach the network; noticed at the next start
projects = []             # whose work, such as ["climate"]; []: everyone's
look_ahead = 1.0          # how many short tasks wait here for a free processor, as a share of cpus; 0: none
stream_logs = true        # false on a metered line: logs are sent when a task has ended
"""
