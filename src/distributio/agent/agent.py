"""What a host does with itself: look at what the owner allows and what is held, plan, carry out, speak with the site.

One thread plans; every step of a task and every turn with the site has a thread of its own and wakes the planner when it
is through. Nothing here must be remembered that is not in the journal.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from distributio.agent import planner, policy, recovery
from distributio.agent.cache import Cache
from distributio.agent.carrier import Carrier, label
from distributio.agent.control import Command, Control, Reply
from distributio.agent.conversation import Conversation, News
from distributio.agent.folder import Folder, Membership
from distributio.agent.holdings import Holdings
from distributio.agent.journal import FolderLock, Journal
from distributio.agent.outlook import LOOK_EVERY_SECONDS, Outlook
from distributio.agent.runners.contract import Runner
from distributio.agent.site import KeyUnknown, Refused, Site, SiteAway
from distributio.agent.work import NOT_STARTED, USING_PROCESSOR, Held, Stage
from distributio.wire.native import TaskReport, TurnAnswer

_TIDY_EVERY_SECONDS = 60.0
_GIVE_BACK_SECONDS = 10.0  # for the site to take what is given back when the owner leaves
_FIRST_REST_SECONDS = 30.0
_LONGEST_REST_SECONDS = 3600.0
_KEY_UNKNOWN_TIMES = 3  # in a row, before it is believed
_REPORTED_SOON = frozenset({Stage.COLLECTED, Stage.UPLOADING, Stage.REPORTING, Stage.STOPPING})

log = logging.getLogger(__name__)


class Ending(StrEnum):
    """How an agent comes to its end."""

    LEAVE = "leave"  # what runs goes on without us and is picked up at the next start
    DRAIN = "drain"  # finish and report what runs, begin nothing
    GIVE_BACK = "give-back"  # stop what runs and let others have it
    DETACH = "detach"  # likewise, and leave the site
    KEY_UNKNOWN = "key-unknown"  # the site has forgotten us: there is no one to report to


class Settings(Struct, frozen=True, kw_only=True):
    """How this run of the agent differs from a plain one."""

    until_idle_seconds: float | None = None


class Agent:
    """One host of one site. The caller holds the folder's lock for as long as the agent lives."""

    def __init__(
        self, folder: Folder, membership: Membership, runners: Mapping[str, Runner], settings: Settings | None = None
    ) -> None:
        draw = random.Random()
        self._folder = folder
        self._membership = membership
        self._runners = runners
        self._settings = settings or Settings()
        self._lock = FolderLock(folder.root)
        self._journal = Journal(folder.journal_path)
        self._site = Site(membership.url, f"Host {membership.host}:{membership.key}")
        self._holdings = Holdings(self._journal, draw)
        self._cache = Cache(folder, self._site, list(runners.values()))
        self._carrier = Carrier(folder, self._holdings, self._cache, self._site, runners, self._spawn, draw)
        self._conversation = Conversation(self._site, self, self._report, self._spawn, draw)
        self._ending: Ending | None = None
        self._ending_since = 0.0
        self._fault: BaseException | None = None
        self._keys_unknown = 0
        self._busy: set[int] = set()
        self._why_no_work: list[str] = []
        self._tidied_at = 0.0
        self._rests = 0
        self._rests_until = 0.0
        self._idle_since: float | None = None
        self._finished = threading.Event()
        self._farewell = ""
        self._outlook = Outlook(folder, membership.name, runners)
        self._carrier.stream_logs = self._outlook.policy.stream_logs

    # --- what others ask of it ----------------------------------------------------------------------------------

    def end(self, ending: Ending) -> None:
        """Come to an end. A harder way replaces a softer one."""
        softer = (Ending.DRAIN, Ending.LEAVE, Ending.GIVE_BACK, Ending.DETACH, Ending.KEY_UNKNOWN)
        if self._ending is None or softer.index(ending) > softer.index(self._ending):
            self._ending = ending
            self._ending_since = time.monotonic()
        self._holdings.changed.set()

    @property
    def held_count(self) -> int:
        """How many tasks are held and not over."""
        return sum(1 for held in self._holdings.all.values() if held.stage is not Stage.REPORTING)

    def answered(self, answer: TurnAnswer) -> None:
        """The site has spoken."""
        self._keys_unknown = 0
        for task in (*answer.acknowledged, *answer.cancel):
            if self._holdings.is_at(task, {Stage.REPORTING}):
                self._spawn("forget", self._carrier.clean, task, self._carrier.forget(task))
        for task in answer.cancel:
            self._holdings.note(task, wanted=False)
        for held in self._holdings.accept(answer.assignments, time.time()):
            log.debug("%s: received", label(held))
        self._why_no_work = [because.sentence for because in answer.why_no_work]

    def site_is_back(self) -> None:
        """Whatever waited for the site need not wait any longer."""
        self._holdings.try_all_now()

    def turn_is_over(self) -> None:
        """Think again."""
        self._holdings.changed.set()

    def key_is_unknown(self, message: str) -> None:
        """Believe it when it is said again; a broken proxy says such things too."""
        self._keys_unknown += 1
        if self._keys_unknown >= _KEY_UNKNOWN_TIMES:
            log.error(
                "%s. This host was detached from %s: it stops. Join again with: distributio host attach %s",
                message, self._membership.site_name, self._membership.url,
            )  # fmt: skip
            self._conversation.is_over = True
            self.end(Ending.KEY_UNKNOWN)

    # --- its life -----------------------------------------------------------------------------------------------

    def run(self) -> Ending | None:
        """Work until told to end, or until idle for long enough. Raises what made going on impossible."""
        control = Control(self._folder.root, self._folder.socket_name, self._command)
        try:
            self._wake_up()
            while not self._is_finished():
                pause = self._step()
                self._holdings.changed.wait(pause)
                self._holdings.changed.clear()
                if self._fault is not None:
                    raise self._fault
            self._leave()
        finally:
            self._finished.set()
            control.close()
            self._journal.close()
            self._lock.release()
        return self._ending

    def _wake_up(self) -> None:
        if self._journal.damaged_lines:
            log.warning("%d lines of the journal were unreadable and are lost", self._journal.damaged_lines)
        ours = self._outlook.facts
        log.info(
            "%s of %s (%s): lends %d cpus, %.1f GiB of memory, %.0f GiB of disk; %s",
            f"host {self._membership.host}", self._membership.site_name, self._membership.url,
            ours.cpus, ours.memory_bytes / 2**30, ours.disk_bytes / 2**30, ours.engine or ", ".join(ours.runners),
        )  # fmt: skip
        for task in recovery.recover(self._folder, self._holdings, self._runners):
            self._spawn("follow", self._carrier.follow, task)
        for task, held in self._holdings.all.items():
            if held.stage is Stage.STOPPING:
                self._spawn("clear", self._carrier.clear, task)

    def _step(self) -> float:
        """Do what is to be done now; return how long nothing more needs to be thought of."""
        now = time.monotonic()
        self._look_from_time_to_time(now)
        if self._ending in {Ending.GIVE_BACK, Ending.DETACH, Ending.KEY_UNKNOWN}:
            self._give_everything_back()
        not_now = self._holdings.not_now(now)
        plan = planner.plan(
            planner.Situation(
                held=list(self._holdings.all.values()),
                allowed=self._outlook.allowed,
                now=now,
                since=self._holdings.since,
                not_now=not_now.keys(),
                typical_seconds=self._carrier.typical_seconds,
                closing=self._ending is not None,
                resting=now < self._rests_until,
            )
        )
        if self._ending is Ending.LEAVE:
            return 0.05
        self._carry_out(plan)
        wait = self._conversation.consider(self._news(plan), now)
        return max(0.01, min([LOOK_EVERY_SECONDS, wait, *(until - now for until in not_now.values())]))

    def _carry_out(self, plan: planner.Plan) -> None:
        carrier = self._carrier
        leaving = [planner.GiveBack(task, "cancelled") for task in plan.forget]
        for one in (*leaving, *plan.give_back):
            self._release(one.task, one.cause)
        if any(one.cause in planner.NOT_WANTED_HERE for one in plan.give_back):
            self._rest()
        for task in plan.suspend:
            self._once("suspend", carrier.suspend, task)
        for task in plan.resume:
            self._once("resume", carrier.resume, task)
        for task in plan.fetch:
            self._fetch(task)
        for tasks, before, stage, step in (
            (plan.start, Stage.READY, Stage.STARTING, carrier.start),
            (plan.collect, Stage.ENDED, Stage.COLLECTING, carrier.collect),
            (plan.upload, Stage.COLLECTED, Stage.UPLOADING, carrier.upload),
        ):
            for task in tasks:
                if self._holdings.move(task, {before}, stage) is not None:
                    self._spawn(stage, step, task)

    def _rest(self) -> None:
        """Do not ask for a while: the site may offer the same again, and a job has only so many tries."""
        self._rests += 1
        seconds = min(_LONGEST_REST_SECONDS, _FIRST_REST_SECONDS * 2.0 ** min(self._rests, 16))
        self._rests_until = time.monotonic() + seconds
        log.info("asking for no work for %.0f s: what came is not allowed here by policy.toml", seconds)

    def _release(self, task: int, cause: str) -> None:
        if self._carrier.release(task, cause):
            self._spawn("clear", self._carrier.clear, task)

    def _fetch(self, task: int) -> None:
        held = self._holdings.get(task)
        if held is None:
            return
        runner = self._carrier.runner(held)
        if runner is not None and self._cache.has_all(held.assignment, runner):
            self._holdings.move(task, {Stage.ASSIGNED}, Stage.READY)
        elif self._holdings.move(task, {Stage.ASSIGNED}, Stage.FETCHING) is not None:
            log.info("%s: fetching %s", label(held), held.assignment.spec.image or "its inputs")
            self._spawn("fetch", self._carrier.fetch, task)

    def _give_everything_back(self) -> None:
        cause = {Ending.DETACH: "owner-detached", Ending.KEY_UNKNOWN: "key-unknown"}.get(
            self._ending or Ending.GIVE_BACK, "owner-stopped"
        )
        for task, held in self._holdings.all.items():
            if self._ending is Ending.KEY_UNKNOWN:
                if held.wanted:
                    self._holdings.note(task, wanted=False)
            elif held.stage not in _REPORTED_SOON:
                self._release(task, cause)

    def _is_finished(self) -> bool:
        held = self._holdings.all.values()
        waited = time.monotonic() - self._ending_since
        match self._ending:
            case None:
                return self._has_been_idle(not held)
            case Ending.LEAVE:
                return not any(one.stage in {Stage.STARTING, Stage.COLLECTING} for one in held) or waited > 5.0
            case Ending.DRAIN | Ending.KEY_UNKNOWN:
                return not held
            case Ending.GIVE_BACK | Ending.DETACH:
                runs = any(one.stage is not Stage.REPORTING for one in held)
                return not held or waited > (3 if runs else 1) * _GIVE_BACK_SECONDS

    def _has_been_idle(self, nothing_held: bool) -> bool:
        limit = self._settings.until_idle_seconds
        if limit is None:
            return False
        if not nothing_held or self._conversation.last_answer_at is None:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = time.monotonic()
        return time.monotonic() - self._idle_since >= limit

    def _leave(self) -> None:
        held = self._holdings.all.values()
        left = sum(1 for one in held if one.stage is Stage.REPORTING)
        running = sum(1 for one in held if one.stage in USING_PROCESSOR or one.stage is Stage.SUSPENDED)
        if self._ending is Ending.LEAVE and running:
            log.info("%d task(s) go on running and are picked up at the next start", running)
        elif left:
            log.info("%d report(s) are kept and sent at the next start", left)
        if self._ending is Ending.DETACH:
            self._farewell = self._detach()
            log.info("%s", self._farewell)
            self._holdings.drop(list(self._holdings.all))

    def _detach(self) -> str:
        name = self._membership.site_name
        try:
            self._site.detach()
        except KeyUnknown:
            log.debug("%s knew of it already", name)
        except (SiteAway, Refused) as error:
            self._folder.leave()
            return (
                f"the key is forgotten here, but {name} could not be told ({error}). Remove this host on its pages too."
            )
        self._folder.leave()
        return f"detached from {name}"

    # --- what it sees and says ----------------------------------------------------------------------------------

    def _look_from_time_to_time(self, now: float) -> None:
        if self._outlook.is_due(now):
            computing = any(held.stage in USING_PROCESSOR for held in self._holdings.all.values())
            if self._outlook.look(self._carrier.cpu_seconds.copy(), computing=computing):
                self._carrier.stream_logs = self._outlook.policy.stream_logs
                self._rests = 0
                self._rests_until = 0.0
        if now - self._tidied_at >= _TIDY_EVERY_SECONDS:
            self._tidied_at = now
            self._spawn("tidy", self._tidy)

    def _news(self, plan: planner.Plan) -> News:
        fractions = self._holdings.fractions
        return News(
            facts=self._outlook.facts,
            held={task: (held.phase, fractions.get(task)) for task, held in self._holdings.all.items()},
            reports=plan.report,
            want=plan.want,
        )

    def _report(self, task: int) -> TaskReport | None:
        held = self._holdings.get(task)
        return None if held is None else self._carrier.complete_report(held)

    def _command(self, command: Command) -> Reply:
        match command.verb:
            case "status":
                return Reply(status=self.status())
            case "suspend" | "resume":
                self._folder.suspend(command.verb == "suspend")
                self._holdings.changed.set()
                return Reply(message="suspended" if command.verb == "suspend" else "goes on")
            case "detach":
                self.end(Ending.DETACH)
                self._finished.wait(4 * _GIVE_BACK_SECONDS)
                return Reply(ok=bool(self._farewell), message=self._farewell or "the agent is still giving tasks back")
        return Reply(ok=False, message=f"unknown command {command.verb!r}")

    def status(self) -> dict[str, Any]:
        """How it stands, for people and scripts."""
        held = self._holdings.all
        return {
            "host": self._membership.host,
            "site": self._membership.site_name,
            "url": self._membership.url,
            "state": "suspended" if self._outlook.is_suspended else "computing" if held else "idle",
            "site_problem": self._conversation.problem,
            "why_not_computing": list(self._outlook.allowed.why_not),
            "why_no_work": [] if held else self._why_no_work,
            "lent": {
                "cpus": self._outlook.allowed.cpus,
                "memory_bytes": self._outlook.allowed.memory_bytes,
                "disk_bytes": self._outlook.allowed.disk_bytes,
            },
            "tasks": [_described(one, self._holdings.fractions.get(task)) for task, one in held.items()],
        }

    def _tidy(self) -> None:
        self._cache.trim(
            policy.cache_bytes(self._outlook.policy), [held.assignment for held in self._holdings.all.values()]
        )

    # --- threads ------------------------------------------------------------------------------------------------

    def _once(self, name: str, step: Callable[[int], None], task: int) -> None:
        """Take a step that the plan asks for until the stage has changed, without taking it twice at a time."""
        if task in self._busy:
            return
        self._busy.add(task)

        def run() -> None:
            try:
                step(task)
            finally:
                self._busy.discard(task)
                self._holdings.changed.set()

        self._spawn(name, run)

    def _spawn(self, name: str, target: Callable[..., None], *args: Any) -> None:
        def run() -> None:
            try:
                target(*args)
            except Exception as error:
                log.debug("fault in %s", name, exc_info=True)
                self._fault = error
                self._holdings.changed.set()

        threading.Thread(target=run, daemon=True, name=name).start()


def _described(held: Held, fraction: float | None) -> dict[str, Any]:
    return {
        "task": held.task,
        "job": held.assignment.job,
        "project": held.assignment.project,
        "image": held.assignment.spec.image,
        "phase": held.phase,
        "fraction": fraction,
        "not_started": held.stage in NOT_STARTED,
    }
