"""Why is a job where it is: in words, what the reader can change first."""

import re

import pytest

from builders import NOW, a_job, a_policy, over, ready, running, success
from distributio.lifecycle.advance import advance, cancelled
from distributio.lifecycle.changes import changes
from distributio.lifecycle.explain import because, cause_of, code_of, explain_host, explain_job, in_order
from distributio.lifecycle.model import Outcome, Reason, Task, new_job
from distributio.lifecycle.reasons import REASONS, Because, Kind, Who


def codes(found: list[Because]) -> list[str]:
    return [each.code for each in found]


# --- the table ---


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_is_said_in_sentences(code: str) -> None:
    text = REASONS[code]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
    for words in (text.sentence, text.advice):
        assert re.match(r"[A-Z`]", words), words
        assert words.endswith("."), words
        assert len(words) <= 160
    assert words.count("`") % 2 == 0


def test_every_reason_to_give_up_is_in_the_table() -> None:
    given_up = {code for code, text in REASONS.items() if text.kind is Kind.GIVEN_UP}
    assert given_up == {code_of(reason) for reason in Reason}


def test_a_code_of_a_newer_release_stands_for_itself() -> None:
    found = because("struck-by-lightning", 3)
    assert (found.code, found.count) == ("struck-by-lightning", 3)
    assert "'struck-by-lightning'" in found.sentence


# --- order ---


def test_what_the_reader_can_change_comes_first() -> None:
    counts = {"host-busy": 9, "host-suspended": 5, "host-memory": 1, "disk-full": 2, "unknown-code": 4, "same-owner": 0}
    assert codes(in_order(counts)) == ["host-memory", "disk-full", "host-suspended", "host-busy", "unknown-code"]
    assert codes(in_order(counts, Who.LENDER))[0] == "host-suspended"
    assert codes(in_order(counts, Who.OPERATOR))[0] == "disk-full"


def test_among_equals_what_applies_most_comes_first() -> None:
    found = in_order({"host-memory": 1, "host-cpus": 4, "host-disk": 4})
    assert [(each.code, each.count) for each in found] == [("host-cpus", 4), ("host-disk", 4), ("host-memory", 1)]


# --- jobs ---


def test_waiting_without_hosts() -> None:
    summary, why = explain_job(advance(new_job(1, a_policy()), NOW), {}, 0)
    assert summary == "Waiting: no host is attached to this site yet."
    assert codes(why) == ["no-hosts-yet"]


def test_waiting_for_a_host_that_could_run_it() -> None:
    job = a_job(ready())
    summary, why = explain_job(job, {"host-memory": 2, "host-platform": 1}, 3)
    assert summary == "Waiting: no host of the 3 could run it."
    assert codes(why) == ["host-memory", "host-platform"]


def test_waiting_for_hosts_that_are_away() -> None:
    job = a_job(ready())
    summary, why = explain_job(job, {"no-host-awake": 1, "host-memory": 2}, 3)
    assert summary == "Waiting: 1 host could run it, and it is not here now."
    assert codes(why) == ["host-memory", "no-host-awake"]
    assert explain_job(job, {"no-host-awake": 1, "host-suspended": 1}, 2, ahead=0)[0] == (
        "Waiting: 2 hosts could run it, and none of them is here now."
    )


def test_waiting_for_another_owner() -> None:
    job = advance(a_job(success(), ready(), policy=a_policy(quorum=2)), NOW)
    assert "another owner" in explain_job(job, {"same-owner": 2, "no-host-awake": 1}, 3, ahead=0)[0]


def test_waiting_for_room() -> None:
    job = a_job(ready())
    assert explain_job(job, {"host-busy": 1, "host-memory": 2}, 3)[0] == "Waiting for a host."
    assert explain_job(job, {}, 3, ahead=1)[0] == "Waiting for a host: 1 task is served before it."
    assert explain_job(job, {}, 3, ahead=120)[0] == "Waiting for a host: 120 tasks are served before it."
    assert explain_job(job, {}, 3, ahead=0)[0] == "Waiting for a host: it is the next to be served."


def test_waiting_again_says_what_became_of_earlier_copies() -> None:
    job = a_job(over(Outcome.ERROR, cause="engine-error"), over(Outcome.ERROR, cause="engine-error"), ready())
    summary, why = explain_job(job, {"host-busy": 4}, 4)
    assert summary == "Waiting for a host for another copy."
    assert [(each.code, each.count) for each in why] == [("host-busy", 4), ("engine-error", 2)]


def test_running() -> None:
    policy = a_policy(quorum=3)
    job = advance(a_job(running(), success(), ready(), policy=policy), NOW)
    summary, _ = explain_job(job, {}, 3)
    assert summary == "Running on 1 host, 1 of 3 outputs are back, 1 copy more waits for a host."


def test_checking() -> None:
    job = advance(a_job(success(), success(), policy=a_policy(quorum=2, validator="own")), NOW)
    assert explain_job(job, {}, 3)[0] == "Checking: 2 outputs came back and are being compared."


def test_done() -> None:
    job = advance(a_job(over(Outcome.NO_REPLY, cause="deadline-passed"), success()), NOW)
    summary, why = explain_job(job, {}, 3)
    assert summary == "Done: an output came back (2 copies made)."
    assert codes(why) == ["deadline-passed"]
    job = advance(a_job(success(), success(), policy=a_policy(quorum=2)), NOW)
    assert explain_job(job, {}, 3)[0] == "Done: 2 outputs agree (2 copies made, quorum 2)."


def test_failed_says_how_the_command_ended() -> None:
    job = advance(a_job(over(Outcome.FAILED, cause="exit-code", exit_code=3)), NOW)
    summary, why = explain_job(job, {}, 3)
    assert summary == "Failed: the command itself fails, on every host that tried. The last exit code was 3."
    assert codes(why) == ["too-many-failures", "exit-code"]
    job = advance(a_job(over(Outcome.FAILED, cause="memory-limit", exit_code=137)), NOW)
    assert explain_job(job, {}, 3)[0].endswith("The last time: It used more memory than its limit.")


def test_cancelled() -> None:
    job = advance(cancelled(a_job(ready())), NOW)
    summary, why = explain_job(job, {}, 3)
    assert summary == "Cancelled: its owner no longer wants it."
    assert codes(why) == ["cancelled"]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.ERROR, Outcome.NO_REPLY, Outcome.ABANDONED])
def test_an_end_without_a_cause_has_one_all_the_same(outcome: Outcome) -> None:
    assert cause_of(over(outcome)) in REASONS
    assert cause_of(over(outcome, cause="killed")) == "killed"


@pytest.mark.parametrize("task", [ready(), running(), success(), over(Outcome.NOT_NEEDED)])
def test_what_needs_no_excuse_has_none(task: Task) -> None:
    assert cause_of(task) == ""


# --- hosts ---


def test_a_host_without_work() -> None:
    assert codes(explain_host({})) == ["no-ready-tasks"]
    assert codes(explain_host({"host-memory": 3, "host-runner": 1})) == ["host-runner", "host-memory"]


# --- changes ---


def test_changes_tell_the_story_of_a_job() -> None:
    start = new_job(1, a_policy())
    made = advance(start, NOW)
    assert list(map(str, changes(start, made))) == ["task 0: created ready"]
    failed = advance(a_job(over(Outcome.FAILED, cause="exit-code")), NOW)
    before = advance(a_job(running()), NOW)
    assert list(map(str, changes(before, failed))) == [
        "task 0: in_progress -> over",
        "task 0: outcome none -> failed",
        "task 0: cause exit-code",
        "job: given up: too_many_failures",
        "job: running -> failed",
        "job: hand_over not_ready -> ready",
    ]


def test_sending_says_to_whom() -> None:
    before, after = advance(a_job(ready()), NOW), advance(a_job(running()), NOW)
    assert list(map(str, changes(before, after))) == [
        "task 0: ready -> in_progress",
        "task 0: host 1",
        "job: waiting -> running",
    ]


def test_done_says_what_speaks_for_the_job() -> None:
    before, after = advance(a_job(running()), NOW), advance(a_job(success()), NOW)
    lines = list(map(str, changes(before, after)))
    assert "job: canonical_attempt none -> 0" in lines
    assert "task 0: validity unchecked -> valid" in lines


def test_nothing_changed_says_nothing() -> None:
    job = advance(a_job(ready()), NOW)
    assert changes(job, job) == ()
    assert changes(job, advance(job, NOW)) == ()
