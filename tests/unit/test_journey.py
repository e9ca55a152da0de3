"""Long walks of large jobs: whatever happens, in whatever order, every law holds, and the job can still end."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

import laws
from builders import a_report
from distributio.lifecycle import advance as rules
from distributio.lifecycle import quorum
from distributio.lifecycle.model import (
    EXACT,
    FilesState,
    HandOver,
    Job,
    Outcome,
    Policy,
    TaskState,
    new_job,
)

DAY = 86_400.0


class Journey(RuleBasedStateMachine):
    """One job in the real world. Events are recorded as they come; `draw_conclusions` advances, as the ledger does,
    once for all that came since."""

    @initialize(
        quorum_=st.integers(1, 5),
        more=st.integers(-1, 3),
        max_tasks=st.integers(1, 20),
        failures=st.integers(0, 3),
        errors=st.integers(0, 6),
        successes=st.integers(1, 10),
        validator=st.sampled_from([EXACT, "own"]),
    )
    def submit(
        self, quorum_: int, more: int, max_tasks: int, failures: int, errors: int, successes: int, validator: str
    ) -> None:
        policy = Policy(
            quorum=quorum_,
            target_tasks=max(1, quorum_ + more),
            max_tasks=max_tasks,
            max_failures=failures,
            max_errors=errors,
            max_successes=successes,
            deadline_seconds=int(3 * DAY),
            validator=validator,
        )
        self.now = 0.0
        self.job = self.known = rules.advance(new_job(1, policy), self.now)
        self.events: list[str] = []
        self.opinions: list[quorum.Opinion] = []

    def record(self, event: str, job: Job) -> None:
        self.job = job
        self.events.append(event)

    @rule()
    def draw_conclusions(self) -> None:
        before, self.known = self.known, rules.advance(self.job, self.now)
        self.job = self.known
        laws.examine_step(before, self.events, self.known)
        self.events = []

    @rule(data=st.data())
    def a_host_asks(self, data: st.DataObject) -> None:
        ready = [task.attempt for task in self.job.tasks if task.state is TaskState.READY]
        if ready and not self.job.is_decided:
            attempt = data.draw(st.sampled_from(ready))
            self.record("sent", rules.sent(self.job, attempt, attempt + 1, attempt + 1, self.now))

    @rule(data=st.data(), digest=st.sampled_from("aaaabbc"))
    def a_copy_succeeds(self, data: st.DataObject, digest: str) -> None:
        self._report(data, Outcome.SUCCESS, output_digest=digest)

    @rule(data=st.data(), outcome=st.sampled_from([Outcome.FAILED, Outcome.ERROR, Outcome.ABANDONED]))
    def a_copy_does_not(self, data: st.DataObject, outcome: Outcome) -> None:
        self._report(data, outcome)

    def _report(self, data: st.DataObject, outcome: Outcome, **fields: object) -> None:
        out = [task for task in self.job.tasks if task.host_id is not None]
        if out:
            task = data.draw(st.sampled_from(out))
            late = "late" if task.state is TaskState.OVER else "reported"
            self.record(late, rules.reported(self.job, task.attempt, a_report(outcome, **fields), self.now))

    @rule(days=st.floats(0.1, 5))
    def days_pass(self, days: float) -> None:
        self.now += days * DAY
        self.draw_conclusions()

    @precondition(lambda self: self.job.policy.validator != EXACT and quorum.wants_check(self.job))
    @rule(data=st.data())
    def a_validator_looks(self, data: st.DataObject) -> None:
        viable = [task.attempt for task in self.job.tasks if task.is_viable]
        unreadable = data.draw(st.frozensets(st.sampled_from(viable), max_size=1))
        readable = rules.validated(self.job, quorum.Opinion(validity={}, unreadable=unreadable))
        seen = quorum.compare(readable, quorum.same_digest)
        self.opinions.append(replace(seen, unreadable=unreadable))

    @precondition(lambda self: self.opinions)
    @rule(data=st.data())
    def a_validator_speaks(self, data: st.DataObject) -> None:
        said = self.opinions.pop(data.draw(st.integers(0, len(self.opinions) - 1)))
        self.record("a validator speaks", rules.validated(self.job, said))

    @precondition(lambda self: len(self.job.tasks) > 3)
    @rule()
    def its_owner_cancels(self) -> None:
        self.record("cancelled", rules.cancelled(self.job))

    @rule()
    def its_owner_is_told(self) -> None:
        self.record("handed over", rules.handed_over(self.job))

    @rule()
    def its_files_are_deleted(self) -> None:
        self.record("files deleted", rules.files_deleted(self.job))

    @invariant()
    def every_law_holds(self) -> None:
        laws.examine_stand(self.known, rules, self.now)

    def teardown(self) -> None:
        """However it stands: with patience alone it ends."""
        if not hasattr(self, "job"):
            return
        for _ in range(300):
            self.now += 4 * DAY
            job = rules.advance(self.job, self.now)
            if quorum.wants_check(job):
                job = rules.validated(job, quorum.compare(job, quorum.same_digest))
            ready = [task for task in job.tasks if task.state is TaskState.READY]
            for task in [] if job.is_decided else ready:
                job = rules.sent(job, task.attempt, task.attempt + 1, task.attempt + 1, self.now)
            job = rules.files_deleted(rules.handed_over(job))
            if job == self.job:
                break
            self.job = job
        assert self.job.is_decided
        assert self.job.hand_over is HandOver.DONE
        assert self.job.files is FilesState.DELETED


TestJourney = Journey.TestCase
TestJourney.settings = settings(max_examples=150, stateful_step_count=50, deadline=None, derandomize=True)
