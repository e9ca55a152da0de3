"""When a batch ends, and which of its last copies get a rival."""

import pytest

from builders import NOW, a_job, a_policy, over, ready, running, success
from distributio.lifecycle import tail
from distributio.lifecycle.advance import advance, hurried, reported
from distributio.lifecycle.dispatch import Held, late_seconds
from distributio.lifecycle.model import JobState, Outcome, Report, TaskState
from distributio.lifecycle.tail import Progress
from distributio.lifecycle.trust import Standing, may_hurry


def a_progress(**fields: int) -> Progress:
    defaults = {"job_count": 100, "waiting": 0, "decided": 97}
    return Progress(**(defaults | fields), created_at=NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, True), ({"waiting": 1}, False), ({"decided": 94}, False), ({"decided": 95}, True), ({"decided": 100}, False)],
)
def test_the_tail_is_the_last_twentieth_once_all_are_begun(fields: dict[str, int], expected: bool) -> None:
    assert tail.is_in_tail(a_progress(**fields)) is expected


def test_the_last_job_of_a_small_batch_is_its_tail() -> None:
    assert tail.is_in_tail(a_progress(job_count=4, decided=3))
    assert not tail.is_in_tail(a_progress(job_count=4, decided=2))


def test_one_copy_more_is_made_and_the_first_back_decides() -> None:
    job = advance(a_job(running()), NOW)
    both = advance(hurried(job), NOW)
    assert [task.state for task in both.tasks] == [TaskState.IN_PROGRESS, TaskState.READY]
    assert both.quorum == 1
    assert hurried(both) is both
    done = advance(reported(both, 0, Report(outcome=Outcome.SUCCESS, output_digest="a"), NOW), NOW)
    assert done.state is JobState.DONE
    assert done.tasks[1].outcome is Outcome.NOT_NEEDED


@pytest.mark.parametrize(
    "job",
    [
        a_job(ready()),
        a_job(success(), running(), running(), policy=a_policy(quorum=2, target_tasks=3), target_tasks=4),
        a_job(over(Outcome.ERROR), ready()),
        a_job(success(validity="valid"), canonical_attempt=0),  # type: ignore[arg-type]
    ],
)
def test_what_is_not_late_for_want_of_a_host_is_not_hurried(job: object) -> None:
    assert hurried(job) is job  # type: ignore[arg-type]


def test_a_copy_is_extra_only_where_those_in_play_are_enough() -> None:
    def held(outcome: Outcome, sent_at: float = NOW) -> Held:
        return Held(host_id=1, user_id=1, outcome=outcome, received_at=None, sent_at=sent_at)

    assert late_seconds([held(Outcome.NONE)], 1, NOW + 7) == 7
    assert late_seconds([held(Outcome.ERROR)], 1, NOW + 7) is None
    assert late_seconds([held(Outcome.NONE)], 2, NOW + 7) is None
    assert late_seconds([held(Outcome.SUCCESS), held(Outcome.NONE)], 2, NOW + 7) == 7


def test_an_extra_copy_goes_to_a_machine_that_is_right_and_quick() -> None:
    quick = Standing(valid=5, turnaround_seconds=10, error_rate=0.05)
    assert may_hurry(quick, 20)
    assert not may_hurry(quick, 5)
    assert not may_hurry(Standing(), 1000)
    assert not may_hurry(Standing(valid=5, turnaround_seconds=10, troubles=1), 20)


def test_the_forecast_follows_the_pace_then_the_last_copy() -> None:
    assert tail.forecast(a_progress(waiting=40, decided=50), 0.5, None, None, NOW) == NOW + 100
    assert tail.forecast(a_progress(), 0.5, 60.0, NOW - 20, NOW) == NOW + 40
    assert tail.forecast(a_progress(), 0.5, 60.0, NOW - 200, NOW) == NOW
    assert tail.forecast(a_progress(decided=100), 0.5, 60.0, NOW, NOW) is None
    assert tail.forecast(a_progress(waiting=40, decided=50), None, None, None, NOW) is None


def test_the_pace_is_of_what_was_watched_else_since_the_beginning() -> None:
    assert tail.pace_of([(NOW, 10), (NOW + 10, 30)], NOW - 100) == 2.0
    assert tail.pace_of([(NOW, 10)], NOW - 100) == 0.1
    assert tail.pace_of([], NOW) is None
