"""What the exit codes of every command mean, and the errors that end a command with one of them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command leaves behind for scripts."""

    OK = 0
    BROKEN = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    JOB_FAILED = 5
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "All went well; for `run`, the job's command did too.",
    ExitCode.BROKEN: "A mistake of this program, with a traceback; or whoever read its output went away.",
    ExitCode.USAGE: "The command line, the job file or a file it names is wrong. Nothing was sent.",
    ExitCode.UNREACHABLE: "The site does not answer.",
    ExitCode.REFUSED: "The site refused: not found, not allowed, over quota, or not valid. Its reason is printed.",
    ExitCode.JOB_FAILED: "A job failed without an exit code or was stopped; `submit`, `wait`: not all are done; "
    "`validate`, `verify`: no.",
    ExitCode.INTERRUPTED: "Interrupted with Ctrl-C.",
}

RUN_NOTE = (
    "`run` without -d ends with the exit code of the job's own command, whatever it is; the codes above are used only "
    "where there is none, and the reason is printed on standard error."
)


class Stop(Exception):
    """End the command with this message and exit code. The message says what happened, why, and what to do."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.code = code
