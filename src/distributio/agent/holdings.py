"""Which tasks this host holds at this moment, who may move one on, and when a step that failed is tried again."""

import random
import threading
import time
from collections.abc import Collection, Iterable
from typing import Any

from msgspec.structs import replace

from distributio.agent.journal import Journal
from distributio.agent.site import pause_seconds
from distributio.agent.work import Held, Stage
from distributio.wire.native import Assignment

_REMEMBERED = 10_000  # numbers of tasks done with, so that an answer that was late does not begin one again


class Holdings:
    """The journal, with what need not survive a restart. Every change wakes the agent. Safe to use from several threads."""

    def __init__(self, journal: Journal, draw: random.Random) -> None:
        self._journal = journal
        self._draw = draw
        self._lock = threading.RLock()
        self._since = {task: time.monotonic() for task in journal.held}
        self._failures: dict[int, int] = {}
        self._not_before: dict[int, float] = {}
        self._steps: dict[int, threading.Lock] = {}
        self._done: dict[int, None] = {}
        self.fractions: dict[int, float] = {}
        self.changed = threading.Event()

    @property
    def all(self) -> dict[int, Held]:
        """Every task held, by number."""
        return self._journal.held

    @property
    def since(self) -> dict[int, float]:
        """When each task came to its stage (monotonic)."""
        with self._lock:
            return dict(self._since)

    def get(self, task: int) -> Held | None:
        """One task, if it is held."""
        return self._journal.get(task)

    def is_at(self, task: int, stages: Collection[Stage]) -> bool:
        """Whether the task is held and at one of these stages."""
        held = self.get(task)
        return held is not None and held.stage in stages

    def accept(self, assignments: Iterable[Assignment], now: float) -> list[Held]:
        """Take on what is new among these."""
        with self._lock:
            known = self._journal.held.keys() | self._done.keys()
            fresh = [Held(assignment=one, received_at=now) for one in assignments if one.task not in known]
            if fresh:
                self._journal.put(fresh, durable=False)
                self._since.update((one.task, time.monotonic()) for one in fresh)
        self.changed.set()
        return fresh

    def move(
        self, task: int, came_from: Collection[Stage], stage: Stage, *, durable: bool = False, **fields: Any
    ) -> Held | None:
        """Bring the task to a stage, if it still is where the caller believes; otherwise someone decided differently, and
        None is returned. `durable` where losing the line with the power would lose work that was done."""
        with self._lock:
            held = self._journal.get(task)
            if held is None or held.stage not in came_from:
                return None
            moved = replace(held, stage=stage, **fields)
            self._journal.put([moved], durable=durable)
            if stage is not held.stage:
                self._since[task] = time.monotonic()
                self._failures.pop(task, None)
        self.changed.set()
        return moved

    def note(self, task: int, **fields: Any) -> None:
        """Write down something about the task wherever it stands."""
        with self._lock:
            held = self._journal.get(task)
            if held is not None:
                self._journal.put([replace(held, **fields)], durable=False)

    def drop(self, tasks: Iterable[int]) -> None:
        """These tasks are done with."""
        with self._lock:
            for task in tasks:
                self._journal.drop([task])
                self._done[task] = None
                self._steps.pop(task, None)
                self._failures.pop(task, None)
                for times in (self._since, self._not_before, self.fractions):
                    times.pop(task, None)
            for old in list(self._done)[:-_REMEMBERED]:
                del self._done[old]
        self.changed.set()

    def failed(self, task: int) -> int:
        """A step of the task did not succeed for now; it waits before the next try. Returns how often in a row."""
        with self._lock:
            count = self._failures.get(task, 0) + 1
            self._failures[task] = count
            self._not_before[task] = time.monotonic() + pause_seconds(count, self._draw)
        self.changed.set()
        return count

    def not_now(self, now: float) -> dict[int, float]:
        """The tasks that wait for their next try, and until when."""
        with self._lock:
            self._not_before = {task: until for task, until in self._not_before.items() if until > now}
            return dict(self._not_before)

    def try_all_now(self) -> None:
        """The site is back: nothing need wait for it any longer."""
        with self._lock:
            self._not_before.clear()
            self._failures.clear()
        self.changed.set()

    def step(self, task: int) -> threading.Lock:
        """The lock under which one step at a time is carried out for a task."""
        with self._lock:
            return self._steps.setdefault(task, threading.Lock())
