"""What jobs, tasks and files are called on BOINC's wire, so that a name tells whose it is and nobody can guess one.

A task is APP_JOB_ATTEMPT_TASK, a file that it brings TASK'S NAME_rMARK_INDEX. The mark is made with the site's secret: whoever
can name a file was told its name, so an upload needs no other proof.
"""

import hashlib
import hmac
import re

from msgspec import Struct

CONTAINER_APP = "distributio"
CONTAINER_OUTPUTS = ("results.tar", "log.txt")
RUNNER = "boinc:"  # what a job's runner says before the name of a BOINC app

_TASK = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,59})_(\d{1,17}\.\d{1,9})_(\d{1,4})_(\d{1,17})")
_OUTPUT = re.compile(r"(.{1,170})_r([0-9a-f]{16})_(\d{1,2})")
APP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")


class TaskName(Struct, frozen=True):
    """A task, as its name says it."""

    app: str
    job: str
    attempt: int
    task_id: int


def job_name(app: str, job: str) -> str:
    """A job's name."""
    return f"{app}_{job}"


def task_name(app: str, job: str, attempt: int, task_id: int) -> str:
    """A task's name."""
    return f"{app}_{job}_{attempt}_{task_id}"


def read_task(name: str) -> TaskName | None:
    """The task a name means, or None if it is none of ours."""
    match = _TASK.fullmatch(name)
    return TaskName(match[1], match[2], int(match[3]), int(match[4])) if match else None


class Marks:
    """Makes and checks the parts of names and addresses that cannot be guessed."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def mark(self, kind: str, text: str) -> str:
        """16 digits that only the site can make."""
        return hmac.new(self._secret, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()[:16]

    def output(self, task: str, index: int) -> str:
        """What a file that a task brings is called."""
        return f"{task}_r{self.mark('output', task)}_{index}"

    def read_output(self, name: str) -> tuple[TaskName, int] | None:
        """The task and index a file's name means, if the site made the name."""
        match = _OUTPUT.fullmatch(name)
        if match is None or not hmac.compare_digest(self.mark("output", match[1]), match[2]):
            return None
        task = read_task(match[1])
        return (task, int(match[3])) if task else None

    def is_download(self, mark: str, hexadecimal: str) -> bool:
        """Whether the site told somebody to fetch this."""
        return hmac.compare_digest(self.mark("download", hexadecimal), mark)
