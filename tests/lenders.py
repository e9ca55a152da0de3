"""Real hosts for tests: agent processes with the container runner, attached to a real site, that may be killed."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_fixture import standin_archive
from sites import DISTRIBUTIO, RunningSite, running


class Lender:
    """The command line and, on demand, agents of one person on this machine."""

    def __init__(self, site: RunningSite, folder: Path) -> None:
        self.site = site
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def run(
        self, *words: str, status: int | None = 0, seconds: float = 120, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command of ours, as its user types it; `status` is the exit code it must have."""
        done = subprocess.run(
            [*DISTRIBUTIO, *words],
            env=self.site.environment,
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        said = f"{' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        assert status is None or done.returncode == status, said
        return done

    def bring_image(self) -> None:
        """Put python:alpine on the site."""
        self.run("image", "import", str(standin_archive(self.folder).path))

    def data(self, name: str) -> Path:
        """Where an agent keeps its data."""
        return self.folder / name

    def attach(self, name: str) -> None:
        """Join as a host and begin to work."""
        self.run("host", "attach", self.site.url, "--data", str(self.data(name)), "--name", name)
        self.start(name)

    def start(self, name: str) -> None:
        """Let an attached agent work."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.agents[name] = subprocess.Popen(
                [*DISTRIBUTIO, "host", "run", "--data", str(self.data(name))],
                env=self.site.environment,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """As a power cut would."""
        self.agents[name].kill()
        self.agents[name].wait()

    def logs(self) -> str:
        """What the agents and the site have said of late."""
        files = [*sorted(self.folder.glob("*.log")), self.site.log_path]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def close(self) -> None:
        """Leave nothing running: agents give their tasks back as with Ctrl-C."""
        for agent in self.agents.values():
            if agent.poll() is None:
                agent.send_signal(signal.SIGINT)
        for agent in self.agents.values():
            try:
                agent.wait(60)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()


@contextlib.contextmanager
def lending(site: RunningSite, folder: Path, *names: str) -> Iterator[Lender]:
    """A person with the image on the site and agents of these names; what they said is shown if the test fails."""
    lender = Lender(site, folder)
    try:
        lender.bring_image()
        for name in names:
            lender.attach(name)
        yield lender
    except BaseException:
        print(lender.logs())
        raise
    finally:
        lender.close()


@pytest.fixture(scope="module")
def lender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lender]:
    """A site on SQLite with one real host, shared by a module's tests."""
    folder = tmp_path_factory.mktemp("main")
    sites = running(RunningSite(folder))
    site = next(sites)
    with lending(site, folder / "lender", "here") as person:
        yield person
    sites.close()
