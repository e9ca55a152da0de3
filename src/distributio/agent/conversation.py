"""When an agent speaks to its site, and what it does about silence.

A turn stays open at the site until there is something to say. News does not wait for it: another turn is sent beside
it, and the newest one says how things stand.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from distributio.agent.planner import differs
from distributio.agent.site import KeyUnknown, Refused, Site, SiteAway, pause_seconds
from distributio.wire.native import HostFacts, TaskProgress, TaskReport, Turn, TurnAnswer, WorkRequest

WAIT_SECONDS = 30.0
HOLDING_WAIT_SECONDS = 10.0  # with tasks: that one is no longer wanted should not be heard too late
TURNS_AT_ONCE = 6
REPORTS_AT_ONCE = 100
_WANT_NEWS_SECONDS = 0.03  # a task that ends makes room, and its report, which says so too, is a moment behind
_PHASE_NEWS_SECONDS = 1.0  # a phase is worth a turn of its own once it lasts
_HASTY_SECONDS = 0.5  # an empty answer faster than this was not waited for
_LONGEST_HASTE_PAUSE = 5.0

log = logging.getLogger(__name__)

Spawn = Callable[..., None]  # a name, what to call, and its arguments: on a thread of its own


class News(Struct, frozen=True, kw_only=True):
    """What there is to say now."""

    facts: HostFacts
    held: dict[int, tuple[str, float | None]]  # phase and fraction of every task held
    reports: Sequence[int]
    want: WorkRequest | None


class OpenTurn(Struct, kw_only=True):
    """A turn the site has not answered yet."""

    number: int
    started_at: float
    want: WorkRequest | None
    reports: frozenset[int]
    facts: HostFacts | None


class Listener(Protocol):
    """Who is told what the site says."""

    def answered(self, answer: TurnAnswer) -> None:
        """The site has spoken."""

    def site_is_back(self) -> None:
        """The site answers again after it was away."""

    def turn_is_over(self) -> None:
        """A turn ended, well or not: it may be time for the next."""

    def key_is_unknown(self, message: str) -> None:
        """The site does not know this host any more."""


class Conversation:
    """The turns of one host with its site."""

    def __init__(
        self,
        site: Site,
        listener: Listener,
        report: Callable[[int], TaskReport | None],
        spawn: Spawn,
        draw: random.Random,
    ) -> None:
        self._site = site
        self._spawn = spawn
        self._listener = listener
        self._report = report
        self._draw = draw
        self._lock = threading.Lock()
        self._open: dict[int, OpenTurn] = {}
        self._number = 0
        self._told_facts: HostFacts | None = None
        self._told_phases: dict[int, str] = {}
        self._phases_differ_since: float | None = None
        self._want_differs_since: float | None = None
        self._failures = 0
        self._hasty = 0
        self._not_before = 0.0
        self._silent_until = 0.0
        self.is_over = False
        self.last_answer_at: float | None = None
        self.problem = ""

    def consider(self, news: News, now: float) -> float:
        """Speak if there is reason to; return how many seconds later to consider again at the latest."""
        with self._lock:
            if self.is_over or now < self._not_before:
                return max(0.05, self._not_before - now)
            if not self._has_reason(news, now):
                if now < self._silent_until:
                    return max(0.05, self._silent_until - now)
                return 1.0 if self._want_differs_since is None else _WANT_NEWS_SECONDS
            turn, opened = self._compose(news, now)
        self._spawn("turn", self._take_turn, turn, opened)
        return 1.0

    def _has_reason(self, news: News, now: float) -> bool:
        flying = frozenset[int]().union(*(turn.reports for turn in self._open.values()))
        if any(task not in flying for task in news.reports) and not flying:
            return True
        newest = max(self._open.values(), key=lambda turn: turn.number, default=None)
        if len(self._open) >= TURNS_AT_ONCE or now < self._silent_until:
            return False
        if newest is None:
            return True
        if not differs(news.want, newest.want):
            self._want_differs_since = None
        elif self._want_differs_since is None:
            self._want_differs_since = now
        elif now - self._want_differs_since >= _WANT_NEWS_SECONDS:
            return True
        if news.facts != self._told_facts and not any(turn.facts for turn in self._open.values()):
            return True
        phases = {task: phase for task, (phase, _) in news.held.items() if task not in flying}
        if all(self._told_phases.get(task) == phase for task, phase in phases.items()):
            self._phases_differ_since = None
            return False
        if self._phases_differ_since is None:
            self._phases_differ_since = now
        return now - self._phases_differ_since >= _PHASE_NEWS_SECONDS

    def _compose(self, news: News, now: float) -> tuple[Turn, OpenTurn]:
        flying = frozenset[int]().union(*(turn.reports for turn in self._open.values()))
        reports = [
            report
            for report in map(self._report, [task for task in news.reports if task not in flying][:REPORTS_AT_ONCE])
            if report is not None
        ]
        said = frozenset(report.task for report in reports)
        facts = news.facts if news.facts != self._told_facts else None
        self._number += 1
        opened = OpenTurn(number=self._number, started_at=now, want=news.want, reports=said, facts=facts)
        self._open[opened.number] = opened
        self._told_phases = {task: phase for task, (phase, _) in news.held.items()}
        self._phases_differ_since = self._want_differs_since = None
        turn = Turn(
            facts=facts,
            reports=reports,
            held=[
                TaskProgress(task=task, phase=phase, fraction=fraction)
                for task, (phase, fraction) in news.held.items()
                if task not in said
            ],
            want=news.want,
            wait_seconds=HOLDING_WAIT_SECONDS if news.held else WAIT_SECONDS,
        )
        return turn, opened

    def _take_turn(self, turn: Turn, opened: OpenTurn) -> None:
        try:
            answer = self._ask(turn)
            if answer is not None:
                if self._heard(opened, answer):
                    log.info("the site answers again")
                    self._listener.site_is_back()
                self._listener.answered(answer)
        finally:
            with self._lock:
                self._open.pop(opened.number, None)
            self._listener.turn_is_over()

    def _ask(self, turn: Turn) -> TurnAnswer | None:
        try:
            return self._site.turn(turn)
        except KeyUnknown as error:
            self._wait_after_failure(0.0, str(error))
            self._listener.key_is_unknown(str(error))
        except SiteAway as error:
            self._wait_after_failure(error.after_seconds, str(error))
        except Refused as error:
            self._wait_after_failure(5.0, f"the site refuses this host's turn ({error.status}): {error}")
        return None

    def _heard(self, opened: OpenTurn, answer: TurnAnswer) -> bool:
        now = time.monotonic()
        with self._lock:
            was_away = self._failures > 0
            self._failures = 0
            self._not_before = 0.0
            self.problem = ""
            self.last_answer_at = now
            if opened.facts is not None:
                self._told_facts = opened.facts
            is_newest = opened.number == self._number
            is_empty = not (answer.assignments or answer.cancel or answer.acknowledged)
            if is_newest and is_empty and now - opened.started_at < _HASTY_SECONDS:
                self._hasty += 1
                self._silent_until = now + min(_LONGEST_HASTE_PAUSE, 0.1 * 2 ** min(self._hasty, 10))
            elif not is_empty:
                self._hasty = 0
                self._silent_until = 0.0
        return was_away

    def _wait_after_failure(self, at_least: float, problem: str) -> None:
        with self._lock:
            if time.monotonic() >= self._not_before:  # turns that failed together are one failure
                self._failures += 1
                pause = pause_seconds(self._failures, self._draw, at_least)
                self._not_before = time.monotonic() + pause
            if self.problem != problem:
                log.warning("%s; work goes on, trying again", problem)
            self.problem = problem
