"""The plan never uses more than is lent, never asks for more than can be held, and everything comes to an end."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from distributio.agent.planner import (
    LOOK_AHEAD_BELOW_SECONDS,
    WAITS_AT_MOST_SECONDS,
    GiveBack,
    Plan,
    Situation,
    plan,
)
from distributio.agent.policy import Allowed
from distributio.agent.work import NOT_STARTED, OVER, USING_MEMORY, USING_PROCESSOR, Held, Stage
from distributio.wire.native import Assignment, Limits, Spec

GIB = 1 << 30
ALLOWED = Allowed(cpus=2.0, memory_bytes=4 * GIB, disk_bytes=20 * GIB)


def held(task: int, stage: Stage, cpus: float = 1.0, memory_bytes: int = GIB, **more: object) -> Held:
    spec = Spec(limits=Limits(cpus=cpus, memory_bytes=memory_bytes), network=bool(more.pop("network", False)))
    assignment = Assignment(task=task, job=f"1.{task}", project=str(more.pop("project", "science")), spec=spec)
    return Held(assignment=assignment, stage=stage, received_at=float(task), **more)  # type: ignore[arg-type]


def planned(*tasks: Held, allowed: Allowed = ALLOWED, **more: object) -> Plan:
    return plan(Situation(held=tasks, allowed=allowed, now=100.0, **more))  # type: ignore[arg-type]


def test_an_idle_host_asks_for_all_it_lends() -> None:
    want = planned().want
    assert want is not None
    assert (want.cpus, want.memory_bytes, want.disk_bytes) == (2.0, 4 * GIB, 20 * GIB)


def test_a_full_host_asks_for_nothing_while_tasks_are_long_or_unknown() -> None:
    running = [held(1, Stage.RUNNING), held(2, Stage.RUNNING)]
    assert planned(*running).want is None
    assert planned(*running, typical_seconds=LOOK_AHEAD_BELOW_SECONDS + 1).want is None


def test_with_short_tasks_one_more_for_each_processor_may_wait() -> None:
    running = [held(1, Stage.RUNNING), held(2, Stage.RUNNING)]
    want = planned(*running, typical_seconds=0.2).want
    assert want is not None
    assert want.cpus == 2.0
    waiting = [held(3, Stage.READY), held(4, Stage.READY)]
    assert planned(*running, *waiting, typical_seconds=0.2).want is None


def test_look_ahead_can_be_turned_off() -> None:
    running = [held(1, Stage.RUNNING), held(2, Stage.RUNNING)]
    assert planned(*running, allowed=replace(ALLOWED, look_ahead=0.0), typical_seconds=0.2).want is None


def test_each_stage_has_its_next_step() -> None:
    now = planned(
        held(1, Stage.ASSIGNED), held(2, Stage.READY), held(3, Stage.ENDED), held(4, Stage.COLLECTED),
        held(5, Stage.REPORTING),
    )  # fmt: skip
    assert (now.fetch, now.start, now.collect, now.upload, now.report) == ((1,), (2,), (3,), (4,), (5,))


def test_a_step_that_failed_waits_for_its_next_try() -> None:
    tasks = [held(1, Stage.ASSIGNED), held(4, Stage.COLLECTED)]
    now = planned(*tasks, not_now={1, 4})
    assert now.fetch == now.upload == ()


def test_tasks_start_in_the_order_they_came() -> None:
    large, small = held(1, Stage.READY, cpus=2.0), held(2, Stage.READY)
    assert planned(held(9, Stage.RUNNING), large, small).start == ()
    assert planned(large, small).start == (1,)


def test_the_youngest_are_suspended_when_less_is_allowed_and_go_on_first() -> None:
    less = replace(ALLOWED, cpus=1.0)
    assert planned(held(1, Stage.RUNNING), held(2, Stage.RUNNING), allowed=less).suspend == (2,)
    now = planned(held(1, Stage.RUNNING), held(2, Stage.SUSPENDED), held(3, Stage.READY))
    assert now.resume == (2,)
    assert now.start == ()


def test_nothing_runs_or_is_asked_for_when_the_owner_says_no() -> None:
    now = planned(
        held(1, Stage.RUNNING), held(2, Stage.READY), allowed=replace(ALLOWED, may_compute=False), typical_seconds=0.1
    )
    assert now.suspend == (1,)
    assert now.start == ()
    assert now.want is None


def test_what_is_not_wanted_is_forgotten_at_any_stage_once() -> None:
    stages = [stage for stage in Stage if stage is not Stage.STOPPING]
    tasks = [held(n, stage, wanted=False) for n, stage in enumerate(stages)]
    assert planned(*tasks).forget == tuple(range(len(stages)))
    assert planned(held(1, Stage.STOPPING, wanted=False)).forget == ()


def test_what_the_owner_does_not_want_here_is_given_back() -> None:
    tasks = [
        held(1, Stage.ASSIGNED, project="mining"),
        held(2, Stage.ASSIGNED, network=True),
        held(3, Stage.ASSIGNED, cpus=64.0),
    ]
    now = planned(*tasks, allowed=replace(ALLOWED, projects=frozenset({"science"})))
    assert now.give_back == (
        GiveBack(1, "project-not-allowed"),
        GiveBack(2, "network-not-allowed"),
        GiveBack(3, "not-enough-lent"),
    )
    assert now.fetch == ()


def test_what_waited_too_long_here_may_start_elsewhere() -> None:
    since = {3: 100.0 - WAITS_AT_MOST_SECONDS - 1}
    running = [held(1, Stage.RUNNING), held(2, Stage.RUNNING)]
    assert planned(*running, held(3, Stage.READY), since=since).give_back == (GiveBack(3, "waited-too-long"),)


def test_an_agent_that_closes_finishes_what_runs() -> None:
    now = planned(held(1, Stage.RUNNING), held(2, Stage.READY), held(3, Stage.ENDED), closing=True)
    assert now.give_back == (GiveBack(2, "owner-stopped"),)
    assert now.collect == (3,)
    assert now.start == ()
    assert now.want is None


tasks_held = st.lists(
    st.tuples(
        st.sampled_from(list(Stage)),
        st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 4.0]),
        st.integers(16 << 20, 6 * GIB),
        st.booleans(),
    ),
    max_size=8,
).map(
    lambda rows: [
        held(n, stage, cpus=cpus, memory_bytes=memory, wanted=wanted)
        for n, (stage, cpus, memory, wanted) in enumerate(rows)
    ]
)
allowances = st.builds(
    Allowed,
    cpus=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    memory_bytes=st.integers(GIB, 8 * GIB),
    disk_bytes=st.integers(0, 30 * GIB),
    may_compute=st.booleans(),
    look_ahead=st.sampled_from([0.0, 0.5, 1.0]),
)


def used(tasks: Sequence[Held], stages: frozenset[Stage]) -> tuple[float, int]:
    limits = [one.assignment.spec.limits for one in tasks if one.stage in stages]
    return sum(each.cpus for each in limits), sum(each.memory_bytes for each in limits)


@given(tasks=tasks_held, allowed=allowances, typical=st.none() | st.floats(0.01, 100))
def test_no_plan_begins_more_than_is_lent_or_asks_for_more_than_it_can_hold(
    tasks: list[Held], allowed: Allowed, typical: float | None
) -> None:
    now = plan(Situation(held=tasks, allowed=allowed, now=0.0, typical_seconds=typical))
    after = [
        replace(one, stage=Stage.RUNNING)
        if one.task in now.start + now.resume
        else replace(one, stage=Stage.SUSPENDED)
        if one.task in now.suspend
        else one
        for one in tasks
    ]
    cpus, _ = used(after, USING_PROCESSOR)
    _, memory = used(after, USING_MEMORY)
    if now.start or now.resume:
        assert cpus <= allowed.cpus + 1e-6
    if now.start:
        assert memory <= allowed.memory_bytes
        assert allowed.may_compute
    assert set(now.start) <= {one.task for one in tasks if one.stage is Stage.READY and one.wanted}
    if now.want is not None:
        staying = [one for one in tasks if one.wanted and one.task not in {each.task for each in now.give_back}]
        not_over = frozenset(Stage) - OVER
        cpus, memory = used(staying, not_over)
        assert now.want.cpus <= allowed.cpus
        assert now.want.cpus + cpus <= allowed.cpus * (1 + allowed.look_ahead) + 1e-6
        assert now.want.memory_bytes + memory <= allowed.memory_bytes * (1 + allowed.look_ahead)


def carried_out(tasks: list[Held], now: Plan) -> list[Held]:
    """Every step succeeds, and the site acknowledges every report."""
    gone = set(now.forget) | set(now.report) | {one.task for one in now.give_back}
    steps = {
        **dict.fromkeys(now.fetch, Stage.READY),
        **dict.fromkeys(now.start + now.resume, Stage.RUNNING),
        **dict.fromkeys(now.suspend, Stage.SUSPENDED),
        **dict.fromkeys(now.collect, Stage.COLLECTED),
        **dict.fromkeys(now.upload, Stage.REPORTING),
    }
    return [replace(one, stage=steps.get(one.task, one.stage)) for one in tasks if one.task not in gone]


@settings(max_examples=50)
@given(tasks=tasks_held, allowed=allowances)
def test_everything_ends(tasks: list[Held], allowed: Allowed) -> None:
    allowed = replace(allowed, may_compute=True)
    settled = {Stage.FETCHING: Stage.ASSIGNED, Stage.STARTING: Stage.RUNNING, Stage.COLLECTING: Stage.ENDED,
               Stage.UPLOADING: Stage.COLLECTED, Stage.STOPPING: Stage.REPORTING}  # fmt: skip
    tasks = [replace(one, stage=settled.get(one.stage, one.stage)) for one in tasks]
    # What runs or is suspended was once allowed to start, so it fits what is lent now or was.
    tasks = [one for one in tasks if one.stage in NOT_STARTED | OVER or one.assignment.spec.limits.cpus <= allowed.cpus]
    for round_number in range(60):
        now = plan(Situation(held=tasks, allowed=allowed, now=float(round_number)))
        tasks = carried_out(tasks, now)
        tasks = [replace(one, stage=Stage.ENDED) if one.stage is Stage.RUNNING else one for one in tasks]
        if not tasks:
            return
    raise AssertionError(f"still held: {[(one.task, one.stage) for one in tasks]}")
