"""What an agent should do next with the tasks it holds, and how much work it should ask for.

The plan is drawn from values alone. It is made anew after every change, so a step that was lost is planned again.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from distributio.agent.policy import Allowed
from distributio.agent.work import NOT_STARTED, OVER, USING_MEMORY, USING_PROCESSOR, Held, Stage
from distributio.wire.native import Limits, WorkRequest

LOOK_AHEAD_BELOW_SECONDS = 10.0  # longer tasks lose nothing by a round trip, and other hosts could start them now
WAITS_AT_MOST_SECONDS = 120.0  # then a task that cannot start here is given back for another host
FETCHES_AT_ONCE = 4
UPLOADS_AT_ONCE = 4
LEAST_MEMORY_BYTES = 16 << 20
LEAST_DISK_BYTES = 1 << 20
LEAST_CPUS = 0.05
_TASKS_PER_CPU = 4  # at most so many small tasks are asked for at once
_CRUMB = 1e-6  # what adding and taking away fractions of processors leaves behind


class Room(Struct, frozen=True, kw_only=True):
    """An amount of what tasks use."""

    cpus: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: int = 0

    def less(self, limits: Limits) -> "Room":
        """What is left beside a task."""
        return Room(
            cpus=self.cpus - limits.cpus,
            memory_bytes=self.memory_bytes - limits.memory_bytes,
            disk_bytes=self.disk_bytes - limits.disk_bytes,
            gpus=self.gpus - limits.gpus,
        )

    def holds(self, limits: Limits) -> bool:
        """Whether a task fits."""
        return (
            limits.cpus <= self.cpus + _CRUMB
            and limits.memory_bytes <= self.memory_bytes
            and limits.disk_bytes <= self.disk_bytes
            and limits.gpus <= self.gpus
        )


class Situation(Struct, frozen=True, kw_only=True):
    """All that a plan depends on. Tasks in `not_now` failed at a step lately and wait for its next try."""

    held: Sequence[Held]
    allowed: Allowed
    now: float  # monotonic
    since: Mapping[int, float] = {}  # when each task came to its stage, monotonic
    not_now: Collection[int] = frozenset()
    typical_seconds: float | None = None  # how long tasks take here; None: not known yet
    closing: bool = False  # finish what runs, begin nothing
    resting: bool = False  # ask for nothing: what came last was not wanted here


NOT_WANTED_HERE = frozenset({"project-not-allowed", "network-not-allowed", "not-enough-lent"})


class GiveBack(Struct, frozen=True):
    """A task that another host should have, and why."""

    task: int
    cause: str


class Plan(Struct, frozen=True, kw_only=True):
    """What to do, as task numbers, and what to ask the site for."""

    forget: tuple[int, ...] = ()  # stop and remove; nobody wants to hear of it
    give_back: tuple[GiveBack, ...] = ()
    suspend: tuple[int, ...] = ()
    resume: tuple[int, ...] = ()
    fetch: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    collect: tuple[int, ...] = ()
    upload: tuple[int, ...] = ()
    report: tuple[int, ...] = ()
    want: WorkRequest | None = None


def plan(situation: Situation) -> Plan:
    """Say what should be done next."""
    held = sorted(situation.held, key=lambda one: (one.received_at, one.task))
    wanted = [one for one in held if one.wanted]
    give_back = tuple(_to_give_back(situation, wanted))
    leaving = {one.task for one in give_back}
    staying = [one for one in wanted if one.task not in leaving]
    ready = [one for one in staying if one.task not in situation.not_now]
    suspend, resume, start, room = _share_processors(situation, held, staying)
    return Plan(
        forget=tuple(one.task for one in held if not one.wanted and one.stage is not Stage.STOPPING),
        give_back=give_back,
        suspend=suspend,
        resume=resume,
        start=start,
        fetch=_next(ready, Stage.ASSIGNED, Stage.FETCHING, staying, FETCHES_AT_ONCE),
        collect=tuple(one.task for one in ready if one.stage is Stage.ENDED),
        upload=_next(ready, Stage.COLLECTED, Stage.UPLOADING, staying, UPLOADS_AT_ONCE),
        report=tuple(one.task for one in staying if one.stage is Stage.REPORTING),
        want=_to_ask_for(situation, staying, room),
    )


def _next(ready: Iterable[Held], waiting: Stage, busy: Stage, held: Iterable[Held], most: int) -> tuple[int, ...]:
    free = most - sum(1 for one in held if one.stage is busy)
    return tuple([one.task for one in ready if one.stage is waiting][: max(0, free)])


def _to_give_back(situation: Situation, held: Sequence[Held]) -> Iterable[GiveBack]:
    allowed = situation.allowed
    for one in held:
        spec = one.assignment.spec
        if one.stage not in NOT_STARTED:
            continue
        if situation.closing:
            yield GiveBack(one.task, "owner-stopped")
        elif allowed.projects and one.assignment.project not in allowed.projects:
            yield GiveBack(one.task, "project-not-allowed")
        elif spec.network and not allowed.network:
            yield GiveBack(one.task, "network-not-allowed")
        elif not _lent(allowed).holds(spec.limits):
            yield GiveBack(one.task, "not-enough-lent")
        elif one.stage is Stage.READY and _waited(situation, one) > WAITS_AT_MOST_SECONDS:
            yield GiveBack(one.task, "waited-too-long")


def _waited(situation: Situation, one: Held) -> float:
    return situation.now - situation.since.get(one.task, situation.now)


def _lent(allowed: Allowed) -> Room:
    return Room(cpus=allowed.cpus, memory_bytes=allowed.memory_bytes, disk_bytes=allowed.disk_bytes, gpus=allowed.gpus)


def _share_processors(
    situation: Situation, held: Sequence[Held], staying: Sequence[Held]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Room]:
    """Who is suspended, goes on and starts, oldest first, and the room that is left. What is leaving takes room until it
    has left."""
    allowed = situation.allowed
    cpus = allowed.cpus if allowed.may_compute else 0.0
    suspend, cpus = _to_suspend(held, cpus)
    resume: list[int] = []
    for one in staying:
        need = one.assignment.spec.limits.cpus
        if one.stage is Stage.SUSPENDED and need <= cpus + _CRUMB:
            resume.append(one.task)
            cpus -= need
    left = _beside_what_is_kept(allowed, held, cpus)
    start: tuple[int, ...] = ()
    all_go_on = all(one.stage is not Stage.SUSPENDED or one.task in resume for one in staying)
    if all_go_on and allowed.may_compute and not situation.closing:
        start, left = _to_start([one for one in staying if one.task not in situation.not_now], left)
    return tuple(suspend), tuple(resume), start, left


def _to_suspend(held: Sequence[Held], cpus: float) -> tuple[list[int], float]:
    """Those that run without a processor for them, and the processors left beside the others. What is starting or
    stopping cannot be suspended and will soon be something else."""
    suspend = []
    for one in held:
        need = one.assignment.spec.limits.cpus
        if one.stage is Stage.RUNNING and one.wanted and need > cpus + _CRUMB:
            suspend.append(one.task)
        elif one.stage in USING_PROCESSOR or one.stage is Stage.STOPPING:
            cpus -= need
    return suspend, cpus


def _beside_what_is_kept(allowed: Allowed, held: Sequence[Held], cpus: float) -> Room:
    """A suspended task keeps its memory, its disk and its graphics processors; only processors come back."""
    keeps = _lent(allowed)
    for one in held:
        if one.stage in USING_MEMORY:
            keeps = keeps.less(one.assignment.spec.limits)
    return Room(cpus=cpus, memory_bytes=keeps.memory_bytes, disk_bytes=keeps.disk_bytes, gpus=keeps.gpus)


def _to_start(held: Sequence[Held], left: Room) -> tuple[tuple[int, ...], Room]:
    """In order: small tasks do not keep a large one waiting for ever."""
    start = []
    for one in held:
        if one.stage is not Stage.READY:
            continue
        if not left.holds(one.assignment.spec.limits):
            break
        start.append(one.task)
        left = left.less(one.assignment.spec.limits)
    return tuple(start), left


def _to_ask_for(situation: Situation, held: Sequence[Held], left: Room) -> WorkRequest | None:
    """What is free beside all that is held and not over; with short tasks a little more, so that no processor idles
    during a round trip to the site. Never a single task more than is lent."""
    allowed = situation.allowed
    if situation.closing or situation.resting or not allowed.may_compute:
        return None
    lent = _lent(allowed)
    share = 1 + _look_ahead(situation, held)
    room = Room(
        cpus=lent.cpus * share,
        memory_bytes=int(lent.memory_bytes * share),
        disk_bytes=int(lent.disk_bytes * share),
        gpus=int(lent.gpus * share),
    )
    for one in held:
        if one.stage not in OVER:
            room = room.less(one.assignment.spec.limits)
    cpus = round(min(room.cpus, lent.cpus), 6)
    memory = min(room.memory_bytes, lent.memory_bytes)
    disk = min(room.disk_bytes, lent.disk_bytes)
    if cpus < LEAST_CPUS or memory < LEAST_MEMORY_BYTES or disk < LEAST_DISK_BYTES:
        return None
    return WorkRequest(
        cpus=cpus,
        memory_bytes=memory,
        disk_bytes=disk,
        gpus=max(0, min(room.gpus, lent.gpus)),
        tasks=max(1, min(1000, int(cpus * _TASKS_PER_CPU))),
    )


def _look_ahead(situation: Situation, held: Sequence[Held]) -> float:
    """The share of what is lent that may wait here, when tasks are short."""
    if situation.typical_seconds is None or situation.typical_seconds > LOOK_AHEAD_BELOW_SECONDS:
        return 0.0
    running = [_waited(situation, one) for one in held if one.stage is Stage.RUNNING]
    if running and min(running) > LOOK_AHEAD_BELOW_SECONDS:
        return 0.0
    return situation.allowed.look_ahead


def differs(want: WorkRequest | None, told: WorkRequest | None) -> bool:
    """Whether the site should hear of it: disk comes and goes by the file, and is told with the next turn."""
    if want is None or told is None:
        return want is not told
    return (want.cpus, want.memory_bytes, want.gpus, want.tasks) != (
        told.cpus,
        told.memory_bytes,
        told.gpus,
        told.tasks,
    )
