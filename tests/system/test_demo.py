"""What a newcomer types first: the demo, and the tutorial word for word."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_fixture import standin_archive
from sites import DISTRIBUTIO, free_port, wait_for

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("demo")]
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "first-job.md"
BLOCK = re.compile(r"^```console ?(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_demo_ends_well_and_leaves_nothing_running(tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            [*DISTRIBUTIO, "demo", "--folder", str(tmp_path / "demo")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "\nHello BOINC\n" in done.stdout
        assert "hello.txt" in done.stdout
        assert "20 done" in done.stdout + done.stderr
        assert not _processes_of(tmp_path)


def _processes_of(folder: Path) -> list[str]:
    """Command lines of processes that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended meanwhile
            if str(folder) in words:
                found.append(words)
    return found


class Reader:
    """Somebody who follows the tutorial, with a home and a port of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = str(free_port())
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DISTRIBUTIO_", "XDG_"))}
        self.environment = {**kept, "HOME": str(home)}
        self.running: list[subprocess.Popen[bytes]] = []

    def words(self, line: str) -> list[str]:
        """A line of the tutorial as a command, with this reader's port and Python."""
        words = shlex.split(line.removeprefix("$ ").replace("8900", self.port))
        assert words[0] == "distributio", line
        if words[1] == "serve":
            words += ["--listen", f"127.0.0.1:{self.port}"]
        return [*DISTRIBUTIO, *words[1:]]

    def start(self, line: str) -> None:
        """Let a command run on, as in a terminal of its own."""
        with (self.home / "terminal.log").open("ab") as log:
            command = self.words(line)
            self.running.append(subprocess.Popen(command, env=self.environment, cwd=self.home, stdout=log, stderr=log))
        if " serve" in line:
            wait_for(lambda: "Site ready" in (self.home / "terminal.log").read_text(), "the site")

    def do(self, line: str, *, fails: bool) -> str:
        """Run a command to its end."""
        done = subprocess.run(
            self.words(line),
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode != 0) is fails, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """Ctrl-C in every terminal, the last opened first."""
        for process in reversed(self.running):
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader of the tutorial."""
    person = Reader(tmp_path)
    yield person
    person.close()


def test_the_tutorial_works_word_for_word(reader: Reader) -> None:
    blocks = BLOCK.findall(TUTORIAL.read_text())
    assert len(blocks) > 8
    image = str(standin_archive(reader.home).path)
    for kind, text in blocks:
        lines = text.splitlines()
        if kind in ("serve", "host"):
            [line] = lines
            reader.start(line)
            if kind == "serve":
                # Where the test runs no registry can be reached: the image comes as the tutorial says it may.
                reader.do(f"$ distributio image import {image}", fails=False)
            continue
        commands = [line for line in lines if line.startswith("$ ")]
        expected = "\n".join(line for line in lines if not line.startswith("$ "))
        said = "".join(reader.do(command, fails=kind == "fails") for command in commands)
        assert expected in said
