"""Which ready tasks to offer a host that asks, and why the others are not for it.

Tasks that ask the same of a host stand in one queue (`Shape`), so a host is matched against a few shapes and never against
a million tasks. Each refusal has a reason code from lifecycle/explain.py, counted as the matcher runs.
"""

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from distributio.lifecycle.model import Outcome

ERROR_REST_SECONDS = 20.0  # how long a host that just failed a job for its own reasons is not offered that job again


class Shape(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the tasks of one queue ask of a host. Sizes in bytes."""

    runner: str = "container"
    platforms: tuple[str, ...] = ()  # any of these; empty: any
    cpus: float = 1.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: int = 0
    network: bool = False


class Offer(Struct, frozen=True, kw_only=True):
    """What a host is and lends (first block), and what of it is free now (second)."""

    platform: str
    runners: tuple[str, ...]
    cpus: float
    memory_bytes: int
    disk_bytes: int
    gpus: int
    network_allowed: bool

    free_cpus: float
    free_memory_bytes: int
    free_disk_bytes: int
    free_gpus: int
    free_tasks: int

    cpu_model: str = ""


# How alike the hosts of one job's copies may be asked to be: results of floating-point arithmetic differ between them.
ALIKE: dict[str, str] = {
    "os": "the operating system and the kind of processor, such as linux/amd64",
    "cpu": "that, and who makes the processor",
    "model": "that, and the processor's model",
}
_MAKERS: dict[str, tuple[str, ...]] = {
    "intel": ("intel", "pentium", "xeon", "celeron"),
    "amd": ("amd", "ryzen", "epyc", "athlon", "opteron"),
    "apple": ("apple",),
    "arm": ("arm", "cortex", "neoverse", "raspberry", "ampere", "bcm"),
}


def class_of(alike: str, platform: str, cpu_model: str) -> str:
    """The class of a host whose fellows may hold copies of a job with it; empty where any may."""
    if not alike:
        return ""
    words = " ".join(cpu_model.lower().split())
    maker = next((maker for maker, signs in _MAKERS.items() if any(sign in words for sign in signs)), "other")
    return "/".join((platform, maker, words)[: list(ALIKE).index(alike) + 1])


def never_fits(shape: Shape, offer: Offer) -> str | None:
    """Why this host could never run such tasks, or None if it could."""
    if shape.runner not in offer.runners:
        return "host-runner"
    if shape.platforms and offer.platform not in shape.platforms:
        return "host-platform"
    if shape.gpus > offer.gpus:
        return "host-gpus"
    if shape.cpus > offer.cpus:
        return "host-cpus"
    if shape.memory_bytes > offer.memory_bytes:
        return "host-memory"
    if shape.disk_bytes > offer.disk_bytes:
        return "host-disk"
    if shape.network and not offer.network_allowed:
        return "host-network"
    return None


def fits_now(shape: Shape, offer: Offer) -> int:
    """How many such tasks the host has room for now."""
    room = float(offer.free_tasks)
    if shape.cpus:
        room = min(room, offer.free_cpus / shape.cpus + 1e-9)
    if shape.memory_bytes:
        room = min(room, offer.free_memory_bytes / shape.memory_bytes)
    if shape.disk_bytes:
        room = min(room, offer.free_disk_bytes / shape.disk_bytes)
    if shape.gpus:
        room = min(room, offer.free_gpus / shape.gpus)
    return max(0, int(room))


# Copies whose output is, or may yet be, held against another's. One that failed bars its owner from nothing.
_COMPARED = frozenset({Outcome.NONE, Outcome.SUCCESS, Outcome.NO_REPLY})


class Held(Struct, frozen=True, kw_only=True):
    """A copy of the same job that some host has or had."""

    host_id: int
    user_id: int | None
    outcome: str
    received_at: float | None
    sent_at: float | None = None
    counts: bool = True  # whether its output was not found wrong


def late_seconds(twins: Sequence[Held], enough: int, now: float) -> float | None:
    """How long the oldest running copy of a job has taken, where copies enough are in play and one more is only to be
    quicker; None where it is needed."""
    sent_at = [twin.sent_at or now for twin in twins if twin.outcome == Outcome.NONE]
    back = sum(twin.outcome == Outcome.SUCCESS and twin.counts for twin in twins)
    return now - min(sent_at) if sent_at and len(sent_at) + back >= enough else None


def may_have(twins: Iterable[Held], host_id: int, user_id: int | None, quorum: int, now: float) -> str | None:
    """Why a host may not have another copy of a job, or None. Copies that will be compared go to different owners, so that
    nobody agrees with himself; a host that just failed it for its own reasons rests first."""
    for twin in twins:
        if (
            twin.host_id == host_id
            and twin.outcome == Outcome.ERROR
            and (twin.received_at or 0) + ERROR_REST_SECONDS > now
        ):
            return "host-just-failed"
        is_compared = twin.outcome in _COMPARED and quorum > 1
        if is_compared and (twin.host_id == host_id or (user_id is not None and twin.user_id == user_id)):
            return "same-owner"
    return None


class Waiting(Struct, frozen=True, kw_only=True):
    """A queue with ready tasks, and what its project has used of late over its weight."""

    queue_id: int
    project_id: int
    shape: Shape
    ready: int
    share: float
    weight: float = 1.0
    place: tuple[int, int] = (0, 0)  # rank and number of its next task: the lower comes first


def in_turn(queues: Iterable[Waiting]) -> Iterator[Waiting]:
    """The order in which queues are served: projects that had least lately come first; of a project's queues the one whose
    next task has the highest priority, or is the oldest."""
    return iter(sorted(queues, key=lambda queue: (queue.share, queue.place, queue.queue_id)))
