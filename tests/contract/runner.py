"""The examination that every runner passes: what an agent may rely on, whatever does the running."""

import hashlib
import io
import json
import shutil
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distributio.agent.runners.contract import Handle, Image, Phase, Progress, Runner, RunnerError
from distributio.wire.native import Assignment, Input, Limits, Spec
from distributio.wire.results_tar import Bounds, verify

SECONDS = 30.0


class Commands(ABC):
    """How a candidate is told to do things."""

    @abstractmethod
    def echo(self, *lines: str, pause: float = 0.0) -> list[str]:
        """Write lines to the log, with a pause after each."""

    @abstractmethod
    def sleep(self, seconds: float) -> list[str]:
        """Do nothing for so long."""

    @abstractmethod
    def exit(self, code: int) -> list[str]:
        """End with an exit code."""

    @abstractmethod
    def write(self, path: str, text: str) -> list[str]:
        """Write a result."""

    @abstractmethod
    def progress(self, fraction: float, seconds: float) -> list[str]:
        """Say how far it is, then go on for so long."""


class PythonCommands(Commands):
    """The same in an image that holds Python."""

    def echo(self, *lines: str, pause: float = 0.0) -> list[str]:
        return python(f"import time\nfor line in {lines!r}: print(line, flush=True); time.sleep({pause})")

    def sleep(self, seconds: float) -> list[str]:
        return python(f"import time; time.sleep({seconds})")

    def exit(self, code: int) -> list[str]:
        return python(f"raise SystemExit({code})")

    def write(self, path: str, text: str) -> list[str]:
        return python(
            "import os, pathlib\n"
            f"target = pathlib.Path(os.environ['DISTRIBUTIO_RESULTS'], {path!r})\n"
            f"target.parent.mkdir(parents=True, exist_ok=True); target.write_text({text!r})"
        )

    def progress(self, fraction: float, seconds: float) -> list[str]:
        return self.echo(f"##distributio progress {fraction}", pause=seconds)


def python(code: str) -> list[str]:
    """A command that runs some Python."""
    return ["python", "-c", code]


class Candidate:
    """A kind of runner under examination: how to make one, where its data lies, and an image it can run."""

    def __init__(self, make: Callable[[], Runner], commands: Commands, image: Image, slots: Path) -> None:
        self.make = make
        self.runner = make()
        self.commands = commands
        self.image = image
        self.slots = slots
        self.count = 0
        self.handles: list[Handle] = []
        if not self.runner.has_image(image.manifest_digest):
            self.runner.prepare(image)

    def start(self, command: list[str], files: dict[str, Path] | None = None, **spec: object) -> Handle:
        """Start a command. `files` are the inputs' bytes by digest; everything else goes into the spec."""
        self.count += 1
        assignment = Assignment(
            task=self.count,
            job=f"1.{self.count}",
            project="exam",
            spec=Spec(command=command, **({"limits": Limits(wall_seconds=60)} | spec)),  # type: ignore[arg-type]
            image_manifest=self.image.manifest_digest,
        )
        slot = self.slots / f"{time.monotonic_ns()}"
        handle = self.runner.start(assignment, files or {}, slot)
        self.handles.append(handle)
        return handle

    def wait(self, handle: Handle, until: Callable[[Progress], bool] = lambda p: p.phase is Phase.ENDED) -> Progress:
        """Poll until something holds."""
        deadline = time.monotonic() + SECONDS
        while True:
            progress = self.runner.poll(handle)
            if until(progress):
                return progress
            assert time.monotonic() < deadline, f"still {progress}: {self.runner.read_log(handle, 0, 2000)!r}"
            time.sleep(0.01)

    def wait_for_log(self, handle: Handle, text: bytes) -> None:
        """Wait until something is in the log."""
        deadline = time.monotonic() + SECONDS
        while text not in self.runner.read_log(handle, 0, 10_000):
            assert time.monotonic() < deadline, f"{text!r} never came: {self.runner.poll(handle)}"
            time.sleep(0.01)

    def run(
        self, command: list[str], files: dict[str, Path] | None = None, **spec: object
    ) -> tuple[Progress, bytes, Handle]:
        """Run a command to its end."""
        handle = self.start(command, files, **spec)
        progress = self.wait(handle)
        return progress, self.runner.read_log(handle, 0, 1 << 20), handle

    def results(self, handle: Handle) -> dict[str, bytes]:
        """The results, which must be in the canonical form."""
        output = io.BytesIO()
        files = self.runner.collect(handle, output)
        if not files:
            assert not output.getvalue()
            return {}
        summary = verify(io.BytesIO(output.getvalue()), Bounds())
        assert summary.files == files
        with tarfile.open(fileobj=io.BytesIO(output.getvalue())) as tar:
            return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]

    def tidy(self) -> None:
        """Remove everything that was started."""
        while self.handles:
            self.runner.remove(self.handles.pop())


class RunnerExamination:
    """One test for each thing that an agent relies on. Subclasses provide the candidate."""

    @pytest.fixture
    def exam(self, candidate: Candidate) -> Iterator[Candidate]:
        """The candidate, tidied afterwards; nothing of it may be left on the machine."""
        yield candidate
        candidate.tidy()
        assert list(candidate.runner.leftovers()) == []

    def test_the_self_test_passes_and_says_what_is_missing(self, exam: Candidate) -> None:
        capabilities = exam.runner.probe()
        assert capabilities.works, capabilities.problem
        assert capabilities.engine

    def test_a_command_runs_and_its_log_is_kept(self, exam: Candidate) -> None:
        progress, log, _ = exam.run(exam.commands.echo("Hello BOINC"))
        assert (progress.phase, progress.outcome, progress.exit_code) == (Phase.ENDED, "success", 0)
        assert (progress.cause, log) == ("", b"Hello BOINC\n")

    def test_the_log_is_read_in_parts_while_it_runs(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("first", "last", pause=0.4))
        exam.wait_for_log(handle, b"first")
        assert exam.runner.poll(handle).phase is Phase.RUNNING
        assert exam.runner.read_log(handle, 0, 3) == b"fir"
        exam.wait(handle)
        assert exam.runner.read_log(handle, 3, 1000) == b"st\nlast\n"
        assert exam.runner.read_log(handle, 11, 1000) == b""
        assert exam.runner.read_log(handle, 5000, 1000) == b""

    def test_an_exit_code_is_the_commands_own_failure(self, exam: Candidate) -> None:
        progress, _, handle = exam.run(exam.commands.exit(3))
        assert (progress.outcome, progress.exit_code, progress.cause) == ("failed", 3, "exit-code")
        assert exam.results(handle) == {}

    def test_a_missing_command_is_named(self, exam: Candidate) -> None:
        progress, _, _ = exam.run(["no-such-command-anywhere"])
        assert (progress.outcome, progress.exit_code, progress.cause) == ("failed", 127, "command-not-found")

    def test_results_come_back_in_the_canonical_form(self, exam: Candidate) -> None:
        progress, _, handle = exam.run(exam.commands.write("deep/er/hello.txt", "Hello BOINC"))
        assert progress.outcome == "success"
        assert exam.results(handle) == {"deep/er/hello.txt": b"Hello BOINC"}
        assert exam.results(handle) == {"deep/er/hello.txt": b"Hello BOINC"}

    def test_equal_results_are_equal_bytes(self, exam: Candidate) -> None:
        digests = set()
        for _ in range(2):
            _, _, handle = exam.run(exam.commands.write("a.txt", "same"))
            output = io.BytesIO()
            exam.runner.collect(handle, output)
            digests.add(hashlib.sha256(output.getvalue()).hexdigest())
        assert len(digests) == 1

    def test_results_are_not_read_before_the_end(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.sleep(20))
        with pytest.raises(RunnerError, match="ended"):
            exam.runner.collect(handle, io.BytesIO())

    def test_a_handle_outlives_the_runner(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("before", "after", pause=0.3))
        written_down = json.dumps(handle)
        other = exam.make()
        read_again = json.loads(written_down)
        assert other.poll(read_again).phase in (Phase.RUNNING, Phase.ENDED)
        exam.wait(handle)
        assert other.poll(read_again).outcome == "success"
        assert other.read_log(read_again, 0, 100) == b"before\nafter\n"
        assert other.collect(read_again, io.BytesIO()) == 0
        other.remove(read_again)
        assert other.poll(read_again).phase is Phase.LOST

    def test_an_unknown_handle_is_lost_and_harmless(self, exam: Candidate, tmp_path: Path) -> None:
        handle = {"runner": exam.runner.name, "task": 9, "name": "distributio-none", "slot": str(tmp_path / "none")}
        assert exam.runner.poll(handle).phase is Phase.LOST
        assert exam.runner.read_log(handle, 0, 10) == b""
        assert not exam.runner.suspend(handle)
        exam.runner.resume(handle)
        exam.runner.stop(handle)
        exam.runner.remove(handle)

    def test_stopping_ends_it_and_stopping_again_does_nothing(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.sleep(60))
        exam.wait(handle, lambda p: p.phase is Phase.RUNNING)
        exam.runner.stop(handle, at_once=True)
        exam.runner.stop(handle, at_once=True)
        progress = exam.wait(handle)
        assert (progress.outcome, progress.cause) == ("error", "stopped")
        exam.runner.stop(handle)
        assert exam.runner.poll(handle) == progress

    def test_stopping_what_has_ended_changes_nothing(self, exam: Candidate) -> None:
        progress, _, handle = exam.run(exam.commands.echo("done"))
        exam.runner.stop(handle)
        assert exam.runner.poll(handle) == progress
        assert not exam.runner.suspend(handle)

    def test_suspending_keeps_the_work_and_stops_the_clock(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("one", "two", pause=0.5))
        exam.wait_for_log(handle, b"one")
        assert exam.runner.suspend(handle)
        assert exam.runner.suspend(handle)
        assert exam.runner.poll(handle).phase is Phase.SUSPENDED
        frozen_until = time.monotonic() + 1.2
        while time.monotonic() < frozen_until:
            assert b"two" not in exam.runner.read_log(handle, 0, 100)
            time.sleep(0.05)
        exam.runner.resume(handle)
        exam.runner.resume(handle)
        progress = exam.wait(handle)
        assert (progress.outcome, exam.runner.read_log(handle, 0, 100)) == ("success", b"one\ntwo\n")

    def test_what_is_suspended_can_be_stopped(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("up", "more", pause=30))
        exam.wait_for_log(handle, b"up")
        assert exam.runner.suspend(handle)
        exam.runner.stop(handle, at_once=True)
        assert exam.wait(handle).cause == "stopped"

    def test_progress_is_told(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.progress(0.25, 20))
        exam.wait(handle, lambda p: p.fraction == 0.25)
        exam.runner.stop(handle, at_once=True)
        exam.wait(handle)

    def test_time_beyond_the_limit_is_not_given(self, exam: Candidate) -> None:
        progress, _, _ = exam.run(exam.commands.sleep(40), limits=Limits(wall_seconds=0.6))
        assert (progress.outcome, progress.cause) == ("failed", "wall-limit")
        assert progress.wall_seconds < 10

    def test_a_log_beyond_the_limit_is_cut(self, exam: Candidate) -> None:
        command = exam.commands.echo(*(["x" * 1000] * 20), pause=0.01)
        progress, log, _ = exam.run(command, limits=Limits(log_bytes=2048))
        assert (progress.outcome, progress.cause) == ("failed", "log-limit")
        assert len(log) <= 2048

    def test_removing_while_it_runs_ends_it(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.sleep(60))
        exam.wait(handle, lambda p: p.phase is Phase.RUNNING)
        exam.runner.remove(handle)
        exam.runner.remove(handle)
        assert exam.runner.poll(handle).phase is Phase.LOST

    def test_leftovers_are_found_by_an_agent_that_knows_nothing(self, exam: Candidate) -> None:
        handle = exam.start(exam.commands.echo("here", pause=20))
        exam.wait_for_log(handle, b"here")
        assert list(exam.make().leftovers()) == [handle]

    def test_an_input_that_is_not_here_is_said(self, exam: Candidate) -> None:
        absent = Input(path="/data/in.txt", digest="sha256:" + "0" * 64, size_bytes=3)
        with pytest.raises(RunnerError) as refusal:
            exam.start(exam.commands.sleep(1), inputs=[absent])
        assert refusal.value.code == "input-missing"

    def test_an_image_is_checked_byte_by_byte(self, exam: Candidate, tmp_path: Path) -> None:
        spoiled = tmp_path / "spoiled"
        shutil.copytree(exam.image.layout, spoiled)
        manifest = json.loads((spoiled / "blobs/sha256" / exam.image.manifest_digest[7:]).read_bytes())
        layer = spoiled / "blobs/sha256" / manifest["layers"][-1]["digest"][7:]
        content = bytearray(layer.read_bytes())
        content[len(content) // 2] ^= 1
        layer.write_bytes(bytes(content))
        with pytest.raises(RunnerError) as refusal:
            exam.runner.prepare(Image(manifest_digest=exam.image.manifest_digest, layout=spoiled))
        assert refusal.value.code in ("image-digest", "image-bad")
        assert exam.runner.has_image(exam.image.manifest_digest)

    def test_an_image_can_be_forgotten_and_prepared_again(self, exam: Candidate) -> None:
        digest = exam.image.manifest_digest
        exam.runner.forget_image(digest)
        exam.runner.forget_image(digest)
        assert not exam.runner.has_image(digest)
        with pytest.raises(RunnerError, match="prepared"):
            exam.start(exam.commands.sleep(1))
        exam.runner.prepare(exam.image)
        assert exam.make().has_image(digest)
