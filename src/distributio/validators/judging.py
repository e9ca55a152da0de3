"""What a validator's answers mean for a job: asked about each new output alone, then about pairs as the quorum wants them."""

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from distributio.lifecycle import quorum
from distributio.lifecycle.model import Job, Task, Validity
from distributio.lifecycle.quorum import Opinion
from distributio.validators.sandbox import Asked, NotLoaded, ValidatorTrouble

ALONE = -1
MOST_TROUBLE = 3  # answers that a validator may owe before it is not asked any more about a job


class Note(Struct, frozen=True):
    """The validator's words on one attempt alone (`other` is ALONE), or on two that do not agree."""

    attempt: int
    other: int
    words: str


class Judgement(Struct, frozen=True):
    """An opinion on a job, and the words for it."""

    opinion: Opinion
    notes: list[Note]


class _Questioning:
    """One job's questions: none is asked twice, and equal bytes agree without one."""

    def __init__(self, asked: Asked, places: Mapping[str, str], *, patient: bool) -> None:
        self._asked = asked
        self._places = places
        self._patient = patient
        self._trouble = 0
        self._known: dict[tuple[str, str], tuple[bool, str]] = {}
        self.notes: dict[tuple[int, int], str] = {}

    def check(self, task: Task) -> str:
        """Why an output cannot be right; nothing if it can."""
        digest = task.output_digest
        if (digest, "") not in self._known:
            self._known[digest, ""] = self._ask(digest, "")
        good, words = self._known[digest, ""]
        return "" if good else words or "the validator refuses it"

    def agree(self, a: Task, b: Task) -> bool:
        """Whether two outputs agree."""
        if a.output_digest == b.output_digest:
            return True
        one, other = (a, b) if a.attempt < b.attempt else (b, a)
        pair = (one.output_digest, other.output_digest)
        if pair not in self._known:
            self._known[pair] = self._ask(*pair)
        agrees, words = self._known[pair]
        if not agrees:
            self.notes[one.attempt, other.attempt] = words
        return agrees

    def _ask(self, a: str, b: str) -> tuple[bool, str]:
        if self._trouble >= MOST_TROUBLE:
            return False, "the validator is not asked any more: it failed too often on this job"
        try:
            if not b:
                verdict = self._asked.check(self._places[a])
                return verdict.good, verdict.words
            agreement = self._asked.agree(self._places[a], self._places[b])
            return agreement.agrees, agreement.words
        except NotLoaded:
            raise
        except ValidatorTrouble as error:
            if not self._patient:
                raise
            self._trouble += 1
            return False, str(error)


def judge(
    job: Job, asked: Asked, places: Mapping[str, str], unreadable: Mapping[str, str], *, patient: bool = False
) -> Judgement:
    """The opinion on a job. `places` says where each output is, by digest; `unreadable` which are none, and why. Raises
    ValidatorTrouble when the validator owes an answer; with `patient`, that answer counts as no."""
    questions = _Questioning(asked, places, patient=patient)
    bad: dict[int, str] = {}
    for task in job.tasks:
        if task.is_viable and task.validity is not Validity.VALID:
            why = unreadable.get(task.output_digest) or questions.check(task)
            if why:
                bad[task.attempt] = why
    readable = replace(
        job,
        tasks=tuple(replace(task, validity=Validity.INVALID) if task.attempt in bad else task for task in job.tasks),
    )
    said = quorum.compare(readable, questions.agree)
    opinion = Opinion(validity=said.validity, unreadable=frozenset(bad), canonical_attempt=said.canonical_attempt)
    notes = [Note(attempt, ALONE, words) for attempt, words in bad.items()]
    return Judgement(opinion, notes + [Note(*pair, words) for pair, words in questions.notes.items()])
