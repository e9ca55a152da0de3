"""What results do to a host's standing, and what a standing allows."""

from msgspec.structs import replace

from builders import NOW, a_job, a_policy, over, running, success
from distributio.lifecycle import trust
from distributio.lifecycle.advance import advance, discredited, doubted, reported, sent
from distributio.lifecycle.dispatch import class_of
from distributio.lifecycle.explain import why_more_copies
from distributio.lifecycle.model import Job, JobState, Outcome, Policy, Report, Task, Validity, new_job
from distributio.lifecycle.trust import NEW, Deed, Event, Standing

ADAPTIVE = a_policy(adaptive=True)


def an_event(deed: Deed, sent_at: float = NOW, batch: int = 1) -> Event:
    return Event(1, deed, batch, sent_at, 30.0)


def after(standing: Standing, *deeds: Deed, now: float = NOW) -> Standing:
    for deed in deeds:
        standing = trust.judged(standing, an_event(deed, sent_at=now), now)
    return standing


def proven() -> Standing:
    return after(NEW, *[Deed.CONFIRMED] * 20)


def deeds(before: Job, job: Job) -> dict[int, Deed]:
    return {event.host_id: event.deed for event in trust.events(before, job, 1)}


def came_back(job: Job, attempt: int, digest: str) -> Job:
    report = Report(outcome=Outcome.SUCCESS, output_digest=digest)
    return advance(reported(job, attempt, report, NOW), NOW)


# --- what a change says of hosts ---------------------------------------------------------------------------------


def test_agreement_confirms_and_disagreement_convicts() -> None:
    job = a_job(success("a"), success("b"), running(), policy=a_policy(quorum=2), target_tasks=3)
    decided = came_back(job, 2, "a")
    assert decided.state is JobState.DONE
    assert deeds(job, decided) == {1: Deed.CONFIRMED, 2: Deed.WRONG, 3: Deed.CONFIRMED}


def test_alone_a_result_is_accepted_not_confirmed() -> None:
    job = a_job(running())
    assert deeds(job, came_back(job, 0, "a")) == {1: Deed.ACCEPTED}


def test_a_known_answer_confirms_alone() -> None:
    job = a_job(running(), expect="a")
    assert deeds(job, came_back(job, 0, "a")) == {1: Deed.CONFIRMED}


def test_an_answer_nobody_gives_convicts_nobody() -> None:
    job = a_job(running(), policy=a_policy(max_errors=1), expect="a")
    missed = came_back(job, 0, "b")
    assert missed.tasks[0].outcome is Outcome.INVALID_OUTPUT
    assert deeds(job, missed) == {1: Deed.OFF}
    again = advance(sent(missed, 1, 2, 2, NOW), NOW)
    given_up = came_back(again, 1, "b")
    assert given_up.state is JobState.FAILED
    assert Deed.WRONG not in deeds(again, given_up).values()
    right = came_back(again, 1, "a")
    assert deeds(again, right) == {1: Deed.WRONG, 2: Deed.CONFIRMED}


def test_failing_what_others_can_do_is_an_error() -> None:
    job = a_job(over(Outcome.FAILED), running(), policy=a_policy(max_failures=2))
    assert deeds(job, came_back(job, 1, "a")) == {1: Deed.ERROR, 2: Deed.ACCEPTED}


def test_each_ending_is_told_once() -> None:
    job = a_job(running(deadline_at=NOW), policy=a_policy(quorum=2))
    silent = advance(job, NOW)
    assert deeds(job, silent) == {1: Deed.SILENT}
    assert deeds(silent, advance(silent, NOW + 1)) == {}


# --- standings ----------------------------------------------------------------------------------------------------


def test_trust_comes_by_confirmed_results_and_goes_by_one_wrong_one() -> None:
    assert not trust.is_trusted(after(NEW, *[Deed.ACCEPTED] * 100))
    assert not trust.is_trusted(after(NEW, *[Deed.CONFIRMED] * 9))
    assert trust.is_trusted(after(NEW, *[Deed.CONFIRMED] * 10))
    fallen = after(proven(), Deed.WRONG)
    assert not trust.is_trusted(fallen)
    assert not trust.is_trusted(after(fallen, *[Deed.CONFIRMED] * 9))


def test_spot_checks_become_rarer_and_never_end() -> None:
    shares = [trust.spot_check_share(after(NEW, *[Deed.CONFIRMED] * count)) for count in (0, 9, 10, 15, 20, 400)]
    assert shares == [1.0, 1.0, 0.1, 1 / 15, 0.05, 0.05]


def test_the_draw_is_the_jobs_own_and_even() -> None:
    draws = [trust.draw("seed", job) for job in range(4_000)]
    assert draws == [trust.draw("seed", job) for job in range(4_000)]
    assert draws != [trust.draw("other", job) for job in range(4_000)]
    assert min(draws) >= 0
    assert max(draws) < 1
    assert abs(sum(draw < 0.05 for draw in draws) / 4_000 - 0.05) < 0.02


def test_a_machine_that_fails_everything_is_set_aside_in_minutes() -> None:
    standing, now, tasks = NEW, NOW, 0
    while standing.allowance > 1:
        most, _ = trust.room(standing, 8, now)
        if most:
            given = min(most, 8)
            tasks += given
            for _ in range(given):
                standing = trust.was_sent(standing, 1, 3600, now)
            for _ in range(given):
                standing = trust.judged(standing, an_event(Deed.ERROR, sent_at=now), now + 1)
        now += 5
    assert now - NOW < 120
    assert tasks <= 8 + 8 + 4
    assert trust.room(standing, 8, now) == (0, "host-set-aside")


def test_all_that_a_broken_engine_held_is_one_trouble() -> None:
    standing = NEW
    for _ in range(32):
        standing = trust.judged(standing, an_event(Deed.ERROR, sent_at=NOW - 60), NOW)
    assert standing.troubles == 1
    assert trust.room(standing, 8, NOW)[0] > 1


def test_it_comes_back_by_one_probe_at_a_time() -> None:
    standing = after(NEW, Deed.ERROR)
    for turn in range(1, 4):
        standing = after(standing, Deed.ERROR, now=NOW + turn)
    assert standing.is_set_aside
    at = standing.rest_until
    assert trust.room(standing, 8, at - 1) == (0, "host-set-aside")
    assert trust.room(standing, 8, at) == (1, "host-set-aside")
    probing = trust.was_sent(standing, 1, 3600, at)
    assert trust.room(probing, 8, at + 10)[0] == 0
    given_back = trust.judged(probing, an_event(Deed.OFF, sent_at=at), at + 10)
    assert given_back.rest_until == at + 10 + trust.rest_seconds(standing.troubles)
    well = trust.judged(probing, an_event(Deed.ACCEPTED, sent_at=at), at + 10)
    assert not well.is_set_aside
    assert trust.room(well, 8, at + 10)[0] > 1


def test_rests_double_up_to_a_limit() -> None:
    assert [trust.rest_seconds(count) for count in range(5)] == [0, 0, 15, 30, 60]
    assert trust.rest_seconds(100) == trust.MOST_REST_SECONDS


def test_the_allowance_is_for_a_day_and_its_processors() -> None:
    standing = Standing(allowance=4, day=trust.day_of(NOW), sent_today=30)
    assert trust.room(standing, 8, NOW) == (2, "daily-allowance")
    assert trust.room(standing, 8, NOW + 86_400) == (32, "daily-allowance")
    assert trust.room(Standing(allowance=1), 8, NOW) == (1, "daily-allowance")
    assert trust.room(proven(), 8, NOW) == (1 << 20, "")
    assert trust.was_sent(proven(), 1, 60, NOW) == proven()


def test_one_silence_costs_allowance_and_no_trust() -> None:
    silent = after(proven(), Deed.SILENT)
    assert trust.is_trusted(silent)
    assert silent.allowance < trust.FULL_ALLOWANCE


def test_failures_count_only_where_others_do_better() -> None:
    standing = NEW
    for count in range(6):
        event = an_event(Deed.FAILED)
        better = trust.wants_evidence(standing, event) and trust.others_do_better(standing, 0, count + 1, False)
        standing = trust.judged(standing, event, NOW, others_do_better=better)
    assert not trust.is_failing(standing, 1, NOW)
    black_hole = NEW
    for count in range(4):
        event = an_event(Deed.FAILED)
        better = trust.wants_evidence(black_hole, event) and trust.others_do_better(black_hole, 0, count + 1, True)
        black_hole = trust.judged(black_hole, event, NOW, others_do_better=better)
    assert trust.is_failing(black_hole, 1, NOW)
    assert not trust.is_failing(black_hole, 2, NOW), "another batch is another matter"
    assert not trust.is_failing(after(black_hole, Deed.ACCEPTED), 1, NOW)


def test_a_batch_that_fails_everywhere_is_not_its_hosts_fault() -> None:
    assert not trust.others_do_better(Standing(failures=3), done=5, failed=40, others_at_work=True)


# --- doubt --------------------------------------------------------------------------------------------------------


def test_doubt_raises_the_quorum_of_adaptive_jobs_only() -> None:
    job = new_job(1, ADAPTIVE)
    suspected = advance(doubted(advance(job, NOW)), NOW)
    assert (suspected.quorum, suspected.target_tasks, len(suspected.tasks)) == (2, 2, 2)
    assert doubted(suspected) is suspected
    plain = advance(new_job(1, Policy()), NOW)
    assert doubted(plain) is plain


def test_what_is_decided_is_not_doubted() -> None:
    done = came_back(a_job(running(), policy=ADAPTIVE), 0, "a")
    assert doubted(done) is done
    assert discredited(done, 1) is done


def test_a_discredited_host_has_nothing_more_to_say() -> None:
    job = a_job(success("a"), running(), policy=a_policy(quorum=2))
    without_first = advance(discredited(job, 1), NOW)
    assert without_first.tasks[0].validity is Validity.INVALID
    assert came_back(without_first, 1, "a").state is not JobState.DONE
    without_second = advance(discredited(job, 2), NOW)
    late = reported(without_second, 1, Report(outcome=Outcome.SUCCESS, output_digest="a"), NOW)
    assert late is without_second


def test_the_first_copy_fixes_the_class_until_nothing_came_of_it() -> None:
    job = advance(new_job(1, replace(a_policy(quorum=2), alike="cpu")), NOW)
    fixed = sent(job, 0, 1, 1, NOW, "linux/amd64/intel")
    assert fixed.alike == "linux/amd64/intel"
    failed = advance(reported(fixed, 0, Report(outcome=Outcome.ERROR), NOW), NOW)
    assert failed.alike == ""
    back = advance(reported(fixed, 0, Report(outcome=Outcome.SUCCESS, output_digest="a"), NOW), NOW)
    assert back.alike == "linux/amd64/intel"


def test_classes_are_as_fine_as_asked() -> None:
    model = "AMD Ryzen 7  5800X"
    assert class_of("", "linux/amd64", model) == ""
    assert class_of("os", "linux/amd64", model) == "linux/amd64"
    assert class_of("cpu", "linux/amd64", model) == "linux/amd64/amd"
    assert class_of("model", "linux/amd64", model) == "linux/amd64/amd/amd ryzen 7 5800x"
    assert class_of("cpu", "linux/amd64", "Intel(R) Xeon(R)") != class_of("cpu", "linux/amd64", model)


def test_more_copies_are_explained() -> None:
    job = advance(doubted(a_job(running(), policy=ADAPTIVE)), NOW)
    assert why_more_copies(job, is_spot_check=False) == {"second-copy-unproven": 1}
    assert why_more_copies(job, is_spot_check=True) == {"second-copy-spot-check": 1}
    late = a_job(running(), Task(attempt=1), target_tasks=2)
    assert why_more_copies(late, is_spot_check=False) == {"extra-copy": 1}
