"""What a starting agent makes of what the one before it left: work goes on where it was, and nothing else remains."""

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from distributio.agent.carrier import label
from distributio.agent.folder import Folder
from distributio.agent.holdings import Holdings
from distributio.agent.runners.contract import Handle, Runner, RunnerError
from distributio.agent.work import NOT_STARTED, Held, Stage

log = logging.getLogger(__name__)

_BEFORE_CLEANING = frozenset(
    {Stage.STARTING, Stage.RUNNING, Stage.SUSPENDED, Stage.ENDED, Stage.COLLECTING, Stage.STOPPING}
)
_AGAIN = {Stage.COLLECTING: Stage.ENDED, Stage.UPLOADING: Stage.COLLECTED}  # steps that can be taken once more


def recover(folder: Folder, holdings: Holdings, runners: Mapping[str, Runner]) -> list[int]:
    """Set every task to where it can go on from; return those that may be running and are to be followed."""
    left = _leftovers(runners)
    following = []
    for task, held in holdings.all.items():
        stage = _stage(held)
        handle = held.handle
        if stage is Stage.STARTING:
            handle = handle or _handle_of(task, left)
            stage = Stage.RUNNING if handle else Stage.ASSIGNED
        moved = holdings.move(task, {held.stage}, stage, handle=handle)
        if moved is not None and stage in {Stage.RUNNING, Stage.SUSPENDED}:
            following.append(task)
            log.info("%s: found again", label(held))
    _remove_strangers(holdings, left, runners)
    _remove_folders(folder.root / "slots", {t for t, held in holdings.all.items() if held.stage in _BEFORE_CLEANING})
    _remove_folders(folder.root / "output", holdings.all.keys())
    return following


def _stage(held: Held) -> Stage:
    return Stage.ASSIGNED if held.stage in NOT_STARTED else _AGAIN.get(held.stage, held.stage)


def _leftovers(runners: Mapping[str, Runner]) -> list[tuple[str, Handle]]:
    found = []
    for name, runner in runners.items():
        try:
            found += [(name, handle) for handle in runner.leftovers()]
        except RunnerError as error:
            log.warning("the %s runner cannot say what it left behind: %s", name, error)
    return found


def _handle_of(task: int, left: Iterable[tuple[str, Handle]]) -> Handle | None:
    return next((handle for _, handle in left if handle.get("task") == task), None)


def _remove_strangers(holdings: Holdings, left: Iterable[tuple[str, Handle]], runners: Mapping[str, Runner]) -> None:
    known = [held.handle for held in holdings.all.values() if held.handle and held.stage in _BEFORE_CLEANING]
    for name, handle in left:
        if any(_same(handle, other) for other in known):
            continue
        log.info("removing a leftover of an earlier run: %s", handle.get("task", handle))
        try:
            runners[name].stop(handle, at_once=True)
            runners[name].remove(handle)
        except RunnerError as error:
            log.warning("a leftover cannot be removed now: %s", error)


def _same(one: Handle, other: Handle) -> bool:
    return one == other or ("task" in one and one.get("task") == other.get("task"))


def _remove_folders(parent: Path, tasks: Iterable[int]) -> None:
    keep = {str(task) for task in tasks}
    for path in parent.iterdir():
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
