"""What results are worth: nobody is paid twice, by what order things come in, or for saying more."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import NOW, a_job, a_policy, running, success
from distributio.lifecycle import credit
from distributio.lifecycle.advance import advance, reported
from distributio.lifecycle.model import Job, JobState, Outcome, Report, Validity

TOLD = st.floats(min_value=0, max_value=1e6)
DAY = 86_400.0


def paid(before: Job, after: Job, gflops: dict[int, float], *, most_lone_gflops: float = 1.0) -> dict[int, int]:
    grants = credit.grants(before, after, gflops, cpus=1.0, most_seconds=10 * DAY, most_lone_gflops=most_lone_gflops)
    return {grant.host_id: grant.credit for grant in grants}


def in_order(quorum: int, order: list[int], seconds: list[float], gflops: dict[int, float]) -> dict[int, int]:
    """What hosts are paid when their copies of one job come back in this order, each told twice."""
    copies = [running(sent_at=NOW - 2 * DAY) for _ in range(quorum)]
    job = advance(a_job(*copies, policy=a_policy(quorum=quorum)), NOW)
    total: dict[int, int] = {}
    for attempt in [*order, *order]:
        report = Report(outcome=Outcome.SUCCESS, output_digest="a", wall_seconds=seconds[attempt])
        after = advance(reported(job, attempt, report, NOW), NOW)
        for host, amount in paid(job, after, gflops).items():
            assert host not in total, "paid twice"
            total[host] = amount
        job = advance(after, NOW)
    assert job.state is JobState.DONE
    return total


def test_a_day_of_one_gflops_is_two_hundred_cobblestones() -> None:
    job = a_job(running(sent_at=NOW - DAY))
    report = Report(outcome=Outcome.SUCCESS, output_digest="a", wall_seconds=DAY)
    after = advance(reported(job, 0, report, NOW), NOW)
    assert paid(job, after, {1: 1.0}) == {1: 200 * credit.MILLIONTHS}


def test_the_worked_example_of_the_documentation() -> None:
    """Two agree: 100 s on a core of 5 GFLOPS, 160 s on one of 3."""
    job = a_job(
        success("a", sent_at=NOW - 500, wall_seconds=100.0),
        running(sent_at=NOW - 500),
        policy=a_policy(quorum=2),
    )
    after = advance(reported(job, 1, Report(outcome=Outcome.SUCCESS, output_digest="a", wall_seconds=160.0), NOW), NOW)
    assert paid(job, after, {1: 5.0, 2: 3.0}) == {1: 1_111_111, 2: 1_111_111}


@given(st.permutations([0, 1, 2]), st.lists(TOLD, min_size=3, max_size=3), st.lists(TOLD, min_size=3, max_size=3))
def test_no_order_of_reports_or_repeats_changes_a_total(
    order: list[int], seconds: list[float], speeds: list[float]
) -> None:
    gflops = {host: credit.believed_gflops(speed) for host, speed in enumerate(speeds, 1)}
    first = in_order(3, [0, 1, 2], seconds, gflops)
    again = in_order(3, order, seconds, gflops)
    assert first == again
    assert first.keys() == {1, 2, 3}


@given(
    st.integers(min_value=2, max_value=5),
    st.floats(min_value=1, max_value=DAY),
    st.floats(min_value=0.1, max_value=8),
    TOLD,
    TOLD,
)
def test_who_says_more_earns_no_more_than_the_honest(
    quorum: int, seconds: float, speed: float, told_seconds: float, told_speed: float
) -> None:
    """All but one of those who agree tell the truth; what the one says never brings it more than they get."""
    liar = 1
    gflops = dict.fromkeys(range(1, quorum + 1), speed) | {liar: credit.believed_gflops(told_speed)}
    earned = in_order(quorum, list(range(quorum)), [told_seconds, *[seconds] * (quorum - 1)], gflops)
    honest = min(amount for host, amount in earned.items() if host != liar)
    assert earned[liar] <= honest


@given(TOLD, TOLD)
def test_alone_nobody_earns_more_than_the_apps_average_for_the_time_it_had(seconds: float, speed: float) -> None:
    job = a_job(running(sent_at=NOW - 60))
    after = advance(
        reported(job, 0, Report(outcome=Outcome.SUCCESS, output_digest="a", wall_seconds=seconds), NOW), NOW
    )
    earned = paid(job, after, {1: credit.believed_gflops(speed)}, most_lone_gflops=2.0)[1]
    assert earned <= round(60 * 2.0 * 200 * credit.MILLIONTHS / DAY)


def test_what_is_wrong_earns_nothing() -> None:
    job = a_job(
        success("a", sent_at=NOW - 99, wall_seconds=50),
        success("b", sent_at=NOW - 99, wall_seconds=50),
        running(sent_at=NOW - 99),
        policy=a_policy(quorum=2),
        target_tasks=3,
    )
    after = advance(reported(job, 2, Report(outcome=Outcome.SUCCESS, output_digest="a", wall_seconds=50), NOW), NOW)
    assert paid(job, after, {1: 2.0, 2: 2.0, 3: 2.0}).keys() == {1, 3}


def test_a_straggler_earns_no_more_than_those_it_agrees_with() -> None:
    decided = a_job(
        success("a", Validity.VALID, sent_at=NOW - 99, wall_seconds=10),
        success("a", Validity.VALID, sent_at=NOW - 99, wall_seconds=10),
        success("a", sent_at=NOW - 99, wall_seconds=90),
        policy=a_policy(quorum=2, validator="own"),
        canonical_attempt=0,
    )
    after = a_job(
        *decided.tasks[:2],
        success("a", Validity.VALID, sent_at=NOW - 99, wall_seconds=90),
        policy=decided.policy,
        canonical_attempt=0,
    )
    gflops = {1: 1.0, 2: 1.0, 3: 1.0}
    assert paid(decided, after, gflops) == {3: paid(a_job(), after, gflops)[1]}


@pytest.mark.parametrize("reported_speed", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_speed_that_is_none_counts_as_unknown(reported_speed: float) -> None:
    assert credit.believed_gflops(reported_speed) == credit.UNKNOWN_GFLOPS


def test_an_apps_average_needs_something_to_stand_on() -> None:
    assert credit.lone_gflops(50.0, 10.0) == credit.UNKNOWN_GFLOPS
    assert credit.lone_gflops(5_000.0, 1_000.0) == 5.0


def test_the_recent_average_halves_each_week_and_settles_at_a_days_earnings() -> None:
    once = credit.kept_forward(1_000_000, credit.EPOCH)
    now = credit.recent_average(once, credit.EPOCH)
    assert credit.recent_average(once, credit.EPOCH + credit.HALF_LIFE_SECONDS) == pytest.approx(now / 2)
    start = credit.EPOCH + 40 * credit.HALF_LIFE_SECONDS
    steady = sum(credit.kept_forward(100 * credit.MILLIONTHS, start + day * DAY) for day in range(365))
    assert credit.recent_average(steady, start + 364 * DAY) == pytest.approx(100.0, rel=0.06)


def test_the_recent_average_does_not_depend_on_the_order() -> None:
    amounts = [(3_000_000, 5 * DAY), (1_000_000, 0.0), (7, 2 * DAY)]
    sums = {
        round(sum(credit.kept_forward(amount, credit.EPOCH + at) for amount, at in order), 3)
        for order in itertools.permutations(amounts)
    }
    assert len(sums) == 1


def test_the_low_median_is_out_of_a_minoritys_reach() -> None:
    assert credit.low_median([5]) == 5
    assert credit.low_median([5, 900]) == 5
    assert credit.low_median([5, 6, 900]) == 6
