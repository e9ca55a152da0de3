"""How a validator is asked from outside: a process that is started, questioned, and killed when it takes too long.

Nothing it does can reach the one who asks but its answers: yes or no, and words. When it dies, the words of its end are kept,
and the next question starts another.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from distributio.validators.verdicts import MOST_WORDS, Agreement, Verdict
from distributio.validators.worker import Answer, Question, Setup

_START_SECONDS = 30.0
_MOST_ANSWER = 1 << 20
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from distributio.validators.worker import main; main()"
)


class ValidatorTrouble(Exception):
    """A validator did not answer: it died, took too long, or its code failed. The message says how."""


class NotLoaded(ValidatorTrouble):
    """A validator could not be started at all, whatever the output: the site's operator has to mend it."""


class Asked(Protocol):
    """Somebody who can be asked about outputs by the names of their folders."""

    def check(self, a: str) -> Verdict:
        """Is this output good? Raises ValidatorTrouble."""

    def agree(self, a: str, b: str) -> Agreement:
        """Do these agree? Raises ValidatorTrouble."""


class Sandbox:
    """A validator in a process of its own, over the outputs in a folder. Use it as a context manager."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self.setup = setup
        self.folder = folder
        self.belts = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._is_over = False

    def __enter__(self) -> Self:
        self._complaints = tempfile.TemporaryFile()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._complaints.close()

    def check(self, a: str) -> Verdict:
        """See Asked."""
        answer = self._ask(Question(a=a))
        return Verdict(answer.yes, answer.words)

    def agree(self, a: str, b: str) -> Agreement:
        """See Asked."""
        answer = self._ask(Question(a=a, b=b))
        return Agreement(answer.yes, answer.words)

    def interrupt(self) -> None:
        """Let whoever waits for an answer wait no longer: no more are given. From another thread."""
        self._is_over = True
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the process, and whatever it started."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = None
        self._pending = b""

    def _start(self) -> subprocess.Popen[bytes]:
        paths = json.dumps([str(Path(path).absolute()) for path in sys.path if path])
        self._complaints.seek(0)
        self._complaints.truncate()
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, paths],
            cwd=self.folder,
            env={"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,
        )
        self._process = process
        self._write(process, msgspec.json.encode(self.setup))
        try:
            answer = self._read(process, _START_SECONDS)
        except ValidatorTrouble as error:
            raise NotLoaded(f"the validator {self.setup.choice.name} cannot be started: {error}") from None
        if answer.error:
            self.kill()
            raise NotLoaded(f"the validator {self.setup.choice.name} cannot be loaded: {answer.error}")
        self.belts = answer.words
        return process

    def _ask(self, question: Question) -> Answer:
        if self._is_over:
            raise NotLoaded("the validator was interrupted")
        process = self._process or self._start()
        self._write(process, msgspec.json.encode(question))
        answer = self._read(process, self.setup.bounds.seconds)
        if answer.error:
            raise ValidatorTrouble(f"the validator's code failed: {answer.error}")
        return answer

    def _write(self, process: subprocess.Popen[bytes], line: bytes) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the read that follows says how it ended
            process.stdin.write(line + b"\n")
            process.stdin.flush()

    def _read(self, process: subprocess.Popen[bytes], seconds: float) -> Answer:
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        descriptor = process.stdout.fileno()
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                self.kill()
                raise ValidatorTrouble(f"the validator took longer than {seconds:g} s, and was stopped")
            data = os.read(descriptor, 1 << 16)
            if not data or len(self._pending) > _MOST_ANSWER:
                raise ValidatorTrouble(self._how_it_ended(process))
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            return msgspec.json.decode(line, type=Answer)
        except msgspec.DecodeError as error:
            self.kill()
            raise ValidatorTrouble(f"the validator's answer is not understood: {error}") from None

    def _how_it_ended(self, process: subprocess.Popen[bytes]) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        code = process.returncode
        self.kill()
        self._complaints.seek(0)
        said = self._complaints.read()[-MOST_WORDS:].decode(errors="replace").strip()
        how = "said more than an answer may have" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by signal {-code}"
        return f"the validator {how}" + (f": {said}" if said else "")
