"""What follows from what happens to a job: one case per sentence."""

import pytest

from builders import NOW, a_job, a_policy, a_report, over, ready, running, success
from distributio.lifecycle.advance import (
    REPORTABLE,
    NotAllowed,
    advance,
    cancelled,
    files_deleted,
    handed_over,
    reported,
    sent,
    validated,
)
from distributio.lifecycle.model import (
    FilesState,
    HandOver,
    Job,
    JobState,
    Outcome,
    Reason,
    TaskState,
    Validity,
    new_job,
)
from distributio.lifecycle.quorum import Opinion


def outcomes(job: Job) -> list[Outcome]:
    return [task.outcome for task in job.tasks]


# --- the plain road ---


def test_one_copy_that_succeeds_decides_a_plain_job() -> None:
    job = advance(new_job(7, a_policy()), NOW)
    assert job.state is JobState.WAITING
    job = advance(sent(job, 0, host_id=3, user_id=4, now=NOW), NOW)
    assert job.state is JobState.RUNNING
    assert job.tasks[0].deadline_at == NOW + job.policy.deadline_seconds
    job = advance(reported(job, 0, a_report(wall_seconds=2.5), NOW + 9), NOW + 9)
    assert (job.state, job.canonical_attempt, job.decided_at) == (JobState.DONE, 0, NOW + 9)
    assert job.canonical is not None
    assert (job.canonical.wall_seconds, job.canonical.received_at) == (2.5, NOW + 9)
    assert job.hand_over is HandOver.READY


def test_files_are_released_once_the_job_is_handed_over() -> None:
    job = advance(a_job(success()), NOW)
    assert job.files is FilesState.KEPT
    job = advance(handed_over(job), NOW)
    assert (job.hand_over, job.files) == (HandOver.DONE, FilesState.RELEASED)
    job = advance(files_deleted(job), NOW)
    assert job.files is FilesState.DELETED


def test_handing_over_or_deleting_before_its_time_changes_nothing() -> None:
    job = advance(a_job(running()), NOW)
    assert handed_over(job) is job
    assert files_deleted(job) is job


# --- copies ---


def test_a_silent_host_is_replaced_after_the_deadline() -> None:
    job = advance(a_job(running(deadline_at=NOW)), NOW)
    assert outcomes(job) == [Outcome.NO_REPLY, Outcome.NONE]
    assert job.tasks[0].cause == "deadline-passed"
    assert job.tasks[1].state is TaskState.READY


def test_a_host_has_until_its_deadline() -> None:
    job = a_job(running(deadline_at=NOW), state=JobState.RUNNING)
    assert advance(job, NOW - 0.001) is job


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.ABANDONED])
def test_trouble_of_the_host_is_worth_another_copy(outcome: Outcome) -> None:
    job = advance(reported(a_job(running()), 0, a_report(outcome), NOW), NOW)
    assert outcomes(job) == [outcome, Outcome.NONE]


def test_a_failure_of_the_command_ends_a_job_that_allows_none() -> None:
    job = advance(reported(a_job(running()), 0, a_report(Outcome.FAILED, exit_code=1), NOW), NOW)
    assert (job.state, set(job.reasons)) == (JobState.FAILED, {Reason.TOO_MANY_FAILURES})
    assert job.tasks[0].exit_code == 1


def test_a_job_that_allows_failures_is_tried_again() -> None:
    job = advance(a_job(over(Outcome.FAILED), policy=a_policy(max_failures=1)), NOW)
    assert outcomes(job) == [Outcome.FAILED, Outcome.NONE]
    job = advance(a_job(over(Outcome.FAILED), over(Outcome.FAILED), policy=a_policy(max_failures=1)), NOW)
    assert job.reasons == {Reason.TOO_MANY_FAILURES}


def test_hosts_that_all_have_trouble_end_a_job() -> None:
    job = advance(a_job(*[over(Outcome.ERROR)] * 2, over(Outcome.INVALID_OUTPUT), policy=a_policy(max_errors=2)), NOW)
    assert job.reasons == {Reason.TOO_MANY_ERRORS}


def test_the_last_copy_may_still_decide_the_job() -> None:
    policy = a_policy(max_tasks=2)
    job = advance(a_job(over(Outcome.NO_REPLY), running(), policy=policy), NOW)
    assert (job.state, len(job.tasks)) == (JobState.RUNNING, 2)
    job = advance(reported(job, 1, a_report(Outcome.ABANDONED), NOW), NOW)
    assert job.reasons == {Reason.TOO_MANY_TASKS}


def test_a_job_is_given_up_as_soon_as_a_quorum_is_out_of_reach() -> None:
    policy = a_policy(quorum=3, max_tasks=4, max_failures=9)
    job = advance(a_job(over(Outcome.FAILED), over(Outcome.FAILED), running(), policy=policy), NOW)
    assert job.reasons == {Reason.TOO_MANY_TASKS}
    assert job.tasks[2].outcome is Outcome.NOT_NEEDED


def test_a_policy_that_cannot_be_met_is_given_up_before_anything_is_sent() -> None:
    job = advance(new_job(1, a_policy(quorum=3, max_tasks=2)), NOW)
    assert (set(job.reasons), list(job.tasks)) == ({Reason.TOO_MANY_TASKS}, [])


def test_a_quorum_above_the_target_is_what_counts() -> None:
    job = advance(new_job(1, a_policy(quorum=2, target_tasks=1)), NOW)
    assert len(job.tasks) == 2


def test_a_raised_quorum_asks_for_the_copies_it_needs() -> None:
    job = advance(a_job(running(), quorum=2, target_tasks=2), NOW)
    assert outcomes(job) == [Outcome.NONE, Outcome.NONE]


# --- what a decided job no longer does ---


def test_twins_of_a_decided_job_are_not_needed() -> None:
    policy = a_policy(target_tasks=3)
    job = advance(a_job(success(), running(), ready(), policy=policy), NOW)
    assert outcomes(job) == [Outcome.SUCCESS, Outcome.NOT_NEEDED, Outcome.NOT_NEEDED]


def test_cancelling_is_at_once_and_cannot_undo_a_verdict() -> None:
    job = advance(cancelled(a_job(running(), ready())), NOW)
    assert job.state is JobState.CANCELLED
    assert outcomes(job) == [Outcome.NOT_NEEDED, Outcome.NOT_NEEDED]
    done = advance(a_job(success()), NOW)
    assert cancelled(done) is done


def test_a_copy_of_a_decided_job_is_not_sent_even_before_it_is_withdrawn() -> None:
    with pytest.raises(NotAllowed, match="decided"):
        sent(cancelled(a_job(ready())), 0, host_id=1, user_id=1, now=NOW)


def test_a_copy_is_sent_once() -> None:
    with pytest.raises(NotAllowed, match="in_progress, not ready"):
        sent(a_job(running()), 0, host_id=2, user_id=2, now=NOW)


# --- reports ---


@pytest.mark.parametrize("outcome", [Outcome.NO_REPLY, Outcome.ABANDONED])
def test_a_late_report_is_welcome_while_the_job_is_undecided(outcome: Outcome) -> None:
    job = advance(reported(a_job(over(outcome), running()), 0, a_report(), NOW), NOW)
    assert outcomes(job) == [Outcome.SUCCESS, Outcome.NOT_NEEDED]
    assert job.canonical_attempt == 0


@pytest.mark.parametrize(
    "job",
    [
        a_job(over(Outcome.NO_REPLY), success(validity=Validity.VALID), canonical_attempt=1),
        a_job(over(Outcome.FAILED), running()),
        a_job(success("a"), running(), policy=a_policy(quorum=2)),
        a_job(over(Outcome.NOT_NEEDED), reasons=frozenset({Reason.CANCELLED})),
        a_job(ready()),
    ],
)
def test_other_reports_of_what_is_over_change_nothing(job: Job) -> None:
    assert reported(job, 0, a_report(output_digest="b"), NOW) is job


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - REPORTABLE))
def test_a_host_cannot_report_what_only_the_site_may_say(outcome: Outcome) -> None:
    with pytest.raises(NotAllowed, match="cannot report"):
        reported(a_job(running()), 0, a_report(outcome), NOW)


# --- validators with code of their own ---


def test_outputs_of_an_own_validator_wait_to_be_checked() -> None:
    job = advance(a_job(success("a"), success("b"), policy=a_policy(quorum=2, validator="own")), NOW)
    assert job.state is JobState.CHECKING
    verdict = {0: Validity.VALID, 1: Validity.VALID}
    job = advance(validated(job, Opinion(validity=verdict, canonical_attempt=0)), NOW)
    assert (job.state, job.canonical_attempt) == (JobState.DONE, 0)


def test_an_unreadable_output_counts_as_an_error_of_its_host() -> None:
    job = a_job(success(), policy=a_policy(validator="own", max_errors=0))
    job = advance(validated(job, Opinion(validity={}, unreadable=frozenset({0}))), NOW)
    assert (set(job.reasons), outcomes(job)) == ({Reason.TOO_MANY_ERRORS}, [Outcome.INVALID_OUTPUT])


def test_a_quorum_that_waits_to_be_compared_is_not_thrown_away() -> None:
    policy = a_policy(quorum=2, target_tasks=3, validator="own")
    job = advance(a_job(success(), success(), over(Outcome.FAILED), policy=policy), NOW)
    assert (job.state, len(job.tasks)) == (JobState.CHECKING, 3)


@pytest.mark.parametrize(
    "opinion",
    [
        Opinion(validity={0: Validity.VALID}, canonical_attempt=0),  # of fewer than the quorum
        Opinion(validity={0: Validity.VALID, 1: Validity.VALID}),  # valid beside nothing
        Opinion(validity={0: Validity.VALID, 1: Validity.VALID}, canonical_attempt=2),  # of one that is not there
    ],
)
def test_an_opinion_that_does_not_bear_out_its_verdict_changes_nothing(opinion: Opinion) -> None:
    job = advance(a_job(success(), success(), over(Outcome.ERROR), policy=a_policy(quorum=2, validator="own")), NOW)
    assert validated(job, opinion) is job


def test_an_opinion_after_the_verdict_is_about_stragglers_only() -> None:
    valid = success(validity=Validity.VALID)
    job = advance(a_job(valid, success(), policy=a_policy(validator="own"), canonical_attempt=0), NOW)
    late = Opinion(validity={0: Validity.INVALID, 1: Validity.VALID}, unreadable=frozenset({0}), canonical_attempt=0)
    job = validated(job, late)
    assert [task.validity for task in job.tasks] == [Validity.VALID, Validity.VALID]


def test_an_opinion_about_another_canonical_output_changes_nothing() -> None:
    valid = success(validity=Validity.VALID)
    job = a_job(valid, success("b"), policy=a_policy(validator="own"), canonical_attempt=0)
    assert validated(job, Opinion(validity={1: Validity.VALID}, canonical_attempt=1)) is job


def test_files_wait_for_a_straggler_to_be_compared() -> None:
    valid = success(validity=Validity.VALID)
    job = a_job(valid, success(), policy=a_policy(validator="own"), canonical_attempt=0, hand_over=HandOver.READY)
    job = advance(handed_over(job), NOW)
    assert job.files is FilesState.KEPT
    job = advance(validated(job, Opinion(validity={1: Validity.VALID}, canonical_attempt=0)), NOW)
    assert job.files is FilesState.RELEASED
