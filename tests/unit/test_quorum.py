"""Which outputs agree, and which of them speaks for the job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import NOW, a_job, a_policy, over, success
from distributio.lifecycle.advance import advance
from distributio.lifecycle.model import FilesState, Job, JobState, Outcome, Reason, Task, Validity
from distributio.lifecycle.quorum import compare, needed_to_agree, same_digest, wants_check


def of(digests: str, quorum: int, **fields: object) -> Job:
    """A job whose copies came back with these outputs, a letter each."""
    policy = a_policy(quorum=quorum, **fields)
    return a_job(*[success(digest) for digest in digests], policy=policy)


def words(job: Job) -> str:
    """The validity of each copy by its first letters: vinu."""
    letters = {
        Validity.VALID: "v",
        Validity.INVALID: "i",
        Validity.INCONCLUSIVE: "n",
        Validity.UNCHECKED: "u",
        Validity.NOT_CHECKED: "-",
    }
    return "".join(letters[task.validity] for task in job.tasks)


@pytest.mark.parametrize(("quorum", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_a_strict_majority_of_the_quorum_must_agree(quorum: int, needed: int) -> None:
    assert needed_to_agree(quorum) == needed


@pytest.mark.parametrize(
    ("digests", "quorum", "validities", "canonical"),
    [
        ("a", 1, "v", 0),
        ("aa", 2, "vv", 0),
        ("aba", 3, "viv", 0),
        ("baa", 3, "ivv", 1),
        ("aaaa", 3, "vvvv", 0),
        ("abbb", 3, "ivvv", 1),
        ("abbba", 3, "ivvvi", 1),  # two would do, three speak louder
        ("abba", 3, "viiv", 0),  # as many on either side: the earliest speaks
        ("ab", 1, "vi", 0),
    ],
)
def test_the_largest_group_that_agrees_speaks(digests: str, quorum: int, validities: str, canonical: int) -> None:
    job = advance(of(digests, quorum), NOW)
    assert (words(job), job.canonical_attempt, job.state) == (validities, canonical, JobState.DONE)


@pytest.mark.parametrize(("digests", "quorum"), [("a", 2), ("aa", 3), ("ab", 4)])
def test_fewer_than_the_quorum_are_not_compared(digests: str, quorum: int) -> None:
    job = advance(of(digests, quorum), NOW)
    assert words(job) == "u" * len(digests) + "u" * (quorum - len(digests))
    assert not job.is_decided


@pytest.mark.parametrize(("digests", "quorum"), [("ab", 2), ("abc", 3), ("aabb", 4)])
def test_outputs_that_disagree_ask_for_one_more(digests: str, quorum: int) -> None:
    job = advance(of(digests, quorum), NOW)
    assert words(job) == "n" * quorum + "u"
    assert job.target_tasks == quorum + 1


def test_outputs_that_never_agree_end_the_job() -> None:
    job = advance(of("abcd", 2, max_successes=3), NOW)
    assert job.reasons == {Reason.TOO_MANY_SUCCESSES}
    assert words(job) == "----"


def test_a_new_output_may_settle_what_was_inconclusive() -> None:
    waiting = [success("a", Validity.INCONCLUSIVE), success("b", Validity.INCONCLUSIVE)]
    job = a_job(*waiting, success("b"), policy=a_policy(quorum=2), target_tasks=3)
    assert words(advance(job, NOW)) == "ivv"


def test_two_empty_outputs_agree() -> None:
    assert words(advance(a_job(success(""), success(""), policy=a_policy(quorum=2)), NOW)) == "vv"


def test_what_was_compared_without_result_is_not_compared_again() -> None:
    job = a_job(success("a", Validity.INCONCLUSIVE), success("b", Validity.INCONCLUSIVE), policy=a_policy(quorum=2))
    assert not wants_check(job)


def test_a_straggler_is_compared_with_the_canonical_output_alone() -> None:
    job = a_job(success("a", Validity.VALID), success("b"), success("b"), success("a"), canonical_attempt=0)
    opinion = compare(job, same_digest)
    assert opinion.validity == {1: Validity.INVALID, 2: Validity.INVALID, 3: Validity.VALID}
    assert opinion.canonical_attempt == 0


def test_a_straggler_is_not_compared_with_what_is_gone() -> None:
    job = a_job(success("a", Validity.VALID), success("b"), canonical_attempt=0, files=FilesState.RELEASED)
    assert not wants_check(job)


def test_a_comparison_need_not_be_transitive() -> None:
    def near(a: Task, b: Task) -> bool:
        return abs(int(a.output_digest) - int(b.output_digest)) <= 1

    opinion = compare(a_job(success("1"), success("2"), success("3"), policy=a_policy(quorum=3)), near)
    assert opinion.canonical_attempt == 0
    assert opinion.validity[1] is Validity.VALID
    assert opinion.validity[2] is Validity.INVALID


@given(st.text("abc", min_size=1, max_size=7), st.integers(1, 4))
def test_no_lone_output_wins_against_a_majority(digests: str, quorum: int) -> None:
    opinion = compare(of(digests, quorum), same_digest)
    most = max(digests.count(letter) for letter in digests)
    if len(digests) < quorum or most < needed_to_agree(quorum):
        assert opinion.canonical_attempt is None
        assert set(opinion.validity.values()) == {Validity.INCONCLUSIVE}
    else:
        assert opinion.canonical_attempt is not None
        winner = digests[opinion.canonical_attempt]
        assert digests.count(winner) == most
        assert {n for n, validity in opinion.validity.items() if validity is Validity.VALID} == {
            n for n, digest in enumerate(digests) if digest == winner
        }


def test_what_did_not_succeed_is_not_compared() -> None:
    job = a_job(over(Outcome.FAILED), success("a"), over(Outcome.INVALID_OUTPUT, validity=Validity.INVALID))
    assert compare(job, same_digest).validity == {1: Validity.VALID}
