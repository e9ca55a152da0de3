"""A validator that is any program: a command in a container on the site's own machine, with a cost cap.

It runs where the operator has named an engine, and nowhere else: without network, capabilities or a writable root, with the
outputs mounted for reading. It ends with 0 for yes and 1 for no, and what it prints are its words.
"""

import contextlib
import shlex
import subprocess
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from distributio.validators.confine import Bounds
from distributio.validators.names import Choice
from distributio.validators.sandbox import NotLoaded, ValidatorTrouble
from distributio.validators.verdicts import MOST_WORDS, Agreement, Verdict

ENGINE_SECONDS = 15.0  # to start and to remove a container, on top of the question's own
_ENGINE_FAILED = (125, 126, 127)


class Program:
    """The program of a choice, over the outputs in a folder. Use it as a context manager."""

    def __init__(
        self, engine: str, choice: Choice, bounds: Bounds, folder: Path, engine_seconds: float = ENGINE_SECONDS
    ) -> None:
        self._engine = engine
        self._choice = choice
        self._seconds = min(bounds.seconds, choice.number("seconds"))
        self._memory = bounds.memory_bytes
        self._folder = folder
        self._engine_seconds = engine_seconds
        self._is_over = False
        self._name = f"distributio-validator-{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def check(self, a: str) -> Verdict:
        """See Asked."""
        yes, words = self._run("check", f"/outputs/{a}")
        return Verdict(yes, words)

    def agree(self, a: str, b: str) -> Agreement:
        """See Asked."""
        yes, words = self._run("agree", f"/outputs/{a}", f"/outputs/{b}")
        return Agreement(yes, words)

    def interrupt(self) -> None:
        """Let whoever waits for an answer wait no longer: no more are given. From another thread."""
        self._is_over = True
        self.kill()

    def kill(self) -> None:
        """End the container."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [self._engine, "rm", "-f", self._name], capture_output=True, timeout=2 * ENGINE_SECONDS, check=False
            )

    def _run(self, *words: str) -> tuple[bool, str]:
        if self._is_over:
            raise NotLoaded("the validator was interrupted")
        command = [
            *(self._engine, "run", "--rm", "--name", self._name, "--network=none", "--read-only", "--cap-drop=all"),
            *(
                "--security-opt=no-new-privileges",
                "--pids-limit=64",
                "--ulimit=nofile=256:256",
                "--ulimit=nproc=4096:4096",
            ),
            *("--cpus=1", f"--memory={self._memory}", "--user=65534:65534"),
            *("--tmpfs=/tmp:size=64m", f"--volume={self._folder}:/outputs:ro", "--entrypoint="),
            self._choice.one("image"),
            *shlex.split(self._choice.one("command")),
            *words,
        ]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._seconds + self._engine_seconds,
                check=False,
            )
        except OSError as error:
            raise NotLoaded(f"the engine {self._engine} cannot be started: {error}") from None
        except subprocess.TimeoutExpired:
            self.kill()
            raise ValidatorTrouble(f"the program took longer than {self._seconds:g} s, and was stopped") from None
        said = done.stdout[-MOST_WORDS:].decode(errors="replace").strip()
        complaint = done.stderr[-MOST_WORDS:].decode(errors="replace").strip()
        if done.returncode in (0, 1):
            return done.returncode == 0, said or complaint
        if done.returncode in _ENGINE_FAILED:
            raise NotLoaded(f"the program cannot be run: {complaint}")
        raise ValidatorTrouble(f"the program ended with exit code {done.returncode}: {complaint or said}")
