"""What every runner must do: say what it can, start, poll, suspend, resume, stop, collect, clean.

A runner runs assignments on this host and knows nothing of sites or networks. Its handles are plain data that the
agent's journal keeps, so that work outlives the agent. Every runner passes tests/contract/runner.py.
"""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from msgspec import Struct

from distributio.wire.native import Assignment

Handle = dict[str, Any]  # can be written as JSON and used after a restart of the agent, or of the machine


class RunnerError(Exception):
    """The runner could not do what was asked; the message says what, why and what to do. `code` is a reason code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Phase(StrEnum):
    """Where a started assignment is."""

    RUNNING = "running"
    SUSPENDED = "suspended"
    ENDED = "ended"  # `Progress.outcome` says how
    LOST = "lost"  # unknown here: never started, or its traces are gone


class Progress(Struct, frozen=True, kw_only=True):
    """How an assignment stands. The last five are final once `phase` is ENDED."""

    phase: Phase
    fraction: float | None = None
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0  # peak
    outcome: str = ""  # "success", "failed" (the command's fault), "error" (this host's fault)
    exit_code: int | None = None
    cause: str = ""  # a reason code
    detail: str = ""  # the engine's words, for the log


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a self-test showed, not what is installed. `missing` names protections that are not in force, with
    reasons."""

    works: bool
    engine: str = ""
    sandbox: list[str] = []
    missing: list[str] = []
    problem: str = ""  # why it does not work, and what to do
    can_suspend: bool = True


class Image(Struct, frozen=True, kw_only=True):
    """An image whose blobs are on this host: `layout` is an OCI image layout folder holding them by digest."""

    manifest_digest: str
    layout: Path


class Runner(Protocol):
    """Runs assignments on this host."""

    name: str

    def probe(self) -> Capabilities:
        """Run a self-test and say what was seen."""

    def has_image(self, manifest_digest: str) -> bool:
        """Whether `prepare` need not be called with the image's layers again."""

    def prepare(self, image: Image) -> None:
        """Make the image ready to run; check every digest. Raises RunnerError("image-...")."""

    def forget_image(self, manifest_digest: str) -> None:
        """Free what `prepare` took. Forgetting what is unknown is not an error."""

    def start(self, assignment: Assignment, inputs: dict[str, Path], slot: Path) -> Handle:
        """Begin. `inputs` maps each input's digest to a local file (a tar for a folder). `slot` is a private folder for
        logs and state. The assignment's limits are enforced from here on, also while no agent runs where possible."""

    def poll(self, handle: Handle) -> Progress:
        """Say how it stands, also for a handle from before a restart. Never blocks for more than a second."""

    def read_log(self, handle: Handle, offset: int, most: int) -> bytes:
        """The combined log from `offset` on, at most `most` bytes; empty when there is nothing more yet."""

    def suspend(self, handle: Handle) -> bool:
        """Stop using the processor, keep the work. False if this runner cannot."""

    def resume(self, handle: Handle) -> None:
        """Go on after `suspend`."""

    def stop(self, handle: Handle, *, at_once: bool = False) -> None:
        """End it, kindly unless told otherwise. Stopping what has ended is not an error."""

    def collect(self, handle: Handle, output: BinaryIO) -> int:
        """Write the results, normalised, as a tar; return how many files are in it. Only after it has ended."""

    def remove(self, handle: Handle) -> None:
        """Leave nothing behind. Removing what is gone is not an error."""

    def leftovers(self) -> Iterator[Handle]:
        """Handles of assignments of this agent that exist on the machine, known to the journal or not."""
