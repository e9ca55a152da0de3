"""What an agent knows of one task it holds."""

from enum import StrEnum
from typing import Any

from msgspec import Struct

from distributio.wire.native import Assignment, TaskReport


class Stage(StrEnum):
    """How far a task has come on this host, and what is being done with it now."""

    ASSIGNED = "assigned"  # the site gave it; what it needs may not be here
    FETCHING = "fetching"
    READY = "ready"  # all it needs is here
    STARTING = "starting"  # the runner was asked; its handle may not be known yet
    RUNNING = "running"
    SUSPENDED = "suspended"
    ENDED = "ended"  # `report` says how; its output has not been looked at
    COLLECTING = "collecting"
    COLLECTED = "collected"  # its output is a file of ours, and the runner has cleaned up
    UPLOADING = "uploading"
    REPORTING = "reporting"  # kept until the site acknowledges the report
    STOPPING = "stopping"  # being given back or forgotten


USING_PROCESSOR = frozenset({Stage.STARTING, Stage.RUNNING})
USING_MEMORY = USING_PROCESSOR | {Stage.SUSPENDED, Stage.STOPPING}
NOT_STARTED = frozenset({Stage.ASSIGNED, Stage.FETCHING, Stage.READY})
OVER = frozenset({Stage.ENDED, Stage.COLLECTING, Stage.COLLECTED, Stage.UPLOADING, Stage.REPORTING})

# What is told to the site, where people read it.
PHASES = {
    Stage.ASSIGNED: "fetching",
    Stage.FETCHING: "fetching",
    Stage.READY: "waiting",
    Stage.STARTING: "running",
    Stage.RUNNING: "running",
    Stage.SUSPENDED: "suspended",
    Stage.STOPPING: "running",
}


class Held(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task this host has taken on and not yet been thanked for. This is what the journal keeps."""

    assignment: Assignment
    stage: Stage = Stage.ASSIGNED
    handle: dict[str, Any] | None = None  # the runner's, once it has started
    report: TaskReport | None = None  # without the bytes of output and log, which are files
    received_at: float = 0.0
    log_sent: int = 0  # as far as we know; the site's own count is what holds
    wanted: bool = True  # False: the site takes no report of it any more

    @property
    def task(self) -> int:
        """The task's number on its site."""
        return self.assignment.task

    @property
    def phase(self) -> str:
        """What people read about it."""
        return PHASES.get(self.stage, "uploading")
