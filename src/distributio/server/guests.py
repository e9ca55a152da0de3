"""What a host that asks for work may be given: as its standing has it, and as the other copies of a job do."""

from collections.abc import Sequence
from typing import Any

from distributio.lifecycle import dispatch, trust
from distributio.lifecycle.dispatch import Offer
from distributio.lifecycle.model import Outcome
from distributio.server.ledger import Work
from distributio.store import jobs


class Guest:
    """A host that asks for work, and what its standing allows."""

    def __init__(self, work: Work, host_id: int, user_id: int | None, offer: Offer) -> None:
        self._work = work
        self._host_id = host_id
        self._user_id = user_id
        self._offer = offer
        self._room: dict[int, list[Any]] = {}  # by app: how many more, why no more, the standing

    def is_kept_from(self, lane: jobs.Lane) -> str | None:
        """Why its standing keeps it from the tasks of a batch, or None."""
        room = self._room.get(lane.app_id)
        if room is None:
            standing = self._work.reckoning.standing(self._host_id, lane.app_id)
            most, code = trust.room(standing, self._offer.cpus, self._work.now)
            room = self._room[lane.app_id] = [most, code, standing]
        if room[0] <= 0:
            return str(room[1])
        if room[2].failures and trust.is_failing(room[2], lane.batch_id, self._work.now):
            return "host-failing-batch"
        return None

    def may_have(
        self,
        candidate: jobs.Candidate,
        lane: jobs.Lane,
        twins: Sequence[dispatch.Held],
        classes: dict[int, str],
    ) -> str | None:
        """Why the other copies of a job keep the host from this one, or None. `classes` has the class of hosts that copies
        chosen in this turn have fixed."""
        if lane.policy.alike:
            mine = dispatch.class_of(lane.policy.alike, self._offer.platform, self._offer.cpu_model)
            if mine != (candidate.alike or classes.get(candidate.job_id, mine)):
                return "host-unlike"
            classes[candidate.job_id] = mine
        if not twins:
            return None
        now = self._work.now
        voices = max(candidate.quorum, lane.policy.voices)
        why_not = dispatch.may_have(twins, self._host_id, self._user_id, voices, now)
        if why_not is not None:
            return why_not
        late = dispatch.late_seconds(twins, max(candidate.quorum, lane.policy.target_tasks), now)
        if late is None:
            return None
        if any(twin.host_id == self._host_id for twin in twins):
            return "same-owner"  # it is the one that is late
        return None if self._may_hurry(candidate, lane, late) else "host-not-proven"

    def _may_hurry(self, candidate: jobs.Candidate, lane: jobs.Lane, late: float) -> bool:
        if not trust.may_hurry(self._room[lane.app_id][2], late):
            return False
        alone = lane.policy.adaptive and candidate.quorum < lane.policy.adaptive_quorum
        return not alone or self._work.reckoning.may_work_alone(self._host_id, lane.app_id, candidate.job_id)

    def took(self, app_id: int) -> None:
        """It got a task of this app."""
        self._room[app_id][0] -= 1

    def holds(self) -> dispatch.Held:
        """Its copy, as others see it."""
        return dispatch.Held(
            host_id=self._host_id,
            user_id=self._user_id,
            outcome=Outcome.NONE,
            received_at=None,
            sent_at=self._work.now,
        )
