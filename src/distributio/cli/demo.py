"""`distributio demo`: a site, a host and three submissions on this machine, with what to type to do the same by hand."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from distributio.cli.exits import ExitCode, Stop

HELLO = "print('Hello BOINC')"
WRITE = "open('/root/shared/results/hello.txt','w').write('Hello BOINC')"
SQUARE = "import os; n = int(os.environ['index']); print(f'{n} squared is {n * n}')"
IMAGE = "python:alpine"
PATIENCE_SECONDS = 60.0


def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its site and host between runs.")] = Path(
        "~/.cache/distributio/demo"
    ),
    install: Annotated[bool, typer.Option(help="Install podman if there is no engine and it is allowed.")] = True,
) -> None:
    """Try all of it on this machine: a real site, a real host, three real submissions. Nothing is left running."""
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    results = Path.cwd() / "results"
    _say("An engine to run containers")
    _tell(f"{_engine(install)} is here.")
    with ExitStack() as stack:
        site = stack.enter_context(_site(folder))
        _image(folder, site)
        stack.enter_context(_host(folder, site))
        _first_job(site)
        _second_job(site, results)
        _array(site)
        _say("Done")
        _tell("Look at it yourself: start the site and the host as above, and open the site's address in a browser.")
        _tell(f"The demo's files are in {folder}; remove the folder to forget them.")


def _say(title: str) -> None:
    typer.echo(f"\n== {title}")


def _tell(text: str) -> None:
    typer.echo(f"   {text}")


def _by_hand(*arguments: str) -> None:
    shown = " ".join(_quoted(argument) for argument in arguments)
    typer.echo(f"   $ distributio {shown}")


def _quoted(argument: str) -> str:
    if argument and all(letter.isalnum() or letter in "-_./:=,@" for letter in argument):
        return argument
    return '"' + argument.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`") + '"'


# --- an engine --------------------------------------------------------------------------------------------------


def _engine(install: bool) -> str:
    for name in ("podman", "docker"):
        if shutil.which(name):
            return name
    command = _install_command()
    if command is None or not install:
        raise Stop(
            "Neither podman nor docker is here, and this user may not install one. Ask an administrator for:\n"
            "  apt-get install podman uidmap"
        )
    _tell("neither podman nor docker is here; podman is installed with the system's package manager:")
    _tell(f"$ {' '.join(command)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    prefix = command[: command.index("apt-get")]
    subprocess.run([*prefix, "apt-get", "-qq", "update"], check=False, env=environment)
    done = subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode != 0 or shutil.which("podman") is None:
        raise Stop("podman could not be installed: the lines above say why. Install podman or docker, then try again.")
    return "podman"


def _install_command() -> list[str] | None:
    if shutil.which("apt-get") is None:
        return None
    command = ["apt-get", "-y", "-qq", "install", "podman", "uidmap", "crun", "runc"]
    if os.geteuid() == 0:
        return command
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], check=False, capture_output=True).returncode == 0
    ):
        return ["sudo", "-n", *command]
    return None


# --- the programs -----------------------------------------------------------------------------------------------


class Site:
    """The demo's site, as its other programs find it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            **os.environ,
            "DISTRIBUTIO_CONFIG": str(folder / "config"),
            "DISTRIBUTIO_HOST_DATA": str(folder / "host"),
        }
        for name in ("DISTRIBUTIO_URL", "DISTRIBUTIO_TOKEN", "DISTRIBUTIO_PROJECT", "DISTRIBUTIO_DATA"):
            self.environment.pop(name, None)

    def run(self, *arguments: str) -> int:
        """Run a command of ours as its user would, and return its exit code."""
        _by_hand(*arguments)
        sys.stdout.flush()
        return subprocess.run(_program(*arguments), env=self.environment, check=False).returncode

    def must(self, *arguments: str) -> None:
        """Run a command that has to succeed."""
        code = self.run(*arguments)
        if code != 0:
            raise Stop(f"`distributio {arguments[0]}` ended with {code}; the lines above say why.", ExitCode.JOB_FAILED)


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "distributio.cli.main", *arguments]


@contextmanager
def _running(command: list[str], site: Site, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as lines:
        process = subprocess.Popen(command, env=site.environment, stdout=lines, stderr=lines, start_new_session=True)
    try:
        yield process
    finally:
        # As Ctrl-C would: the host gives its tasks back, the site finishes its requests.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _site(folder: Path) -> Iterator[Site]:
    _say("A site")
    port = _port(folder)
    site = Site(folder, port)
    listen = f"127.0.0.1:{port}"
    _by_hand("serve", "--data", str(folder / "site"), "--listen", listen)
    command = _program("serve", "--data", str(folder / "site"), "--listen", listen)
    log = folder / "site.log"
    started = time.monotonic()
    with _running(command, site, log) as process:
        _wait_for_site(process, port, log)
        _tell(f"it answers at {site.url}/ after {time.monotonic() - started:.1f} s: SQLite, files in a folder.")
        yield site
        _say("Stopping")
    _tell("the host and the site have stopped.")


def _port(folder: Path) -> int:
    """The port of the last run if it is free, so that the host need not join again."""
    known = folder / "port"
    wanted = int(known.read_text()) if known.exists() else 0
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found = int(probe.getsockname()[1])
        if found != wanted:
            shutil.rmtree(folder / "host", ignore_errors=True)
        known.write_text(str(found))
        return found
    raise Stop("no free port on 127.0.0.1")


def _wait_for_site(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise Stop(f"the site did not start; its log says:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


@contextmanager
def _host(folder: Path, site: Site) -> Iterator[None]:
    _say("A host: this machine")
    if not (folder / "host" / "site.json").exists():
        site.must("host", "attach", site.url)
    _by_hand("host", "run")
    log = folder / "host.log"
    with _running(_program("host", "run"), site, log) as process:
        time.sleep(0.2)
        if process.poll() is not None:
            raise Stop(f"the host did not start; its log says:\n{_tail(log)}")
        _tell("it asks the site for work; containers run without network, capabilities or a writable root.")
        yield


# --- the image --------------------------------------------------------------------------------------------------


def _image(folder: Path, site: Site) -> None:
    _say(f"The image {IMAGE}")
    held = subprocess.run(
        _program("image", "ls", "-o", "json"), env=site.environment, check=False, capture_output=True, text=True
    )
    if f"/{IMAGE}" in held.stdout:
        _tell("the site has it from an earlier run.")
        return
    _by_hand("image", "import", IMAGE)
    asked = subprocess.run(
        _program("image", "import", IMAGE), env=site.environment, check=False, capture_output=True, text=True
    )
    if asked.returncode == 0:
        _tell("the site fetched it from its registry.")
        return
    _tell("no registry can be reached from here, so an image of that name is built from Debian packages:")
    from distributio.cli.standin import build_standin

    archive = folder / "python-alpine.tar"
    build_standin(folder / "standin", archive, _tell)
    site.must("image", "import", str(archive))


# --- the three steps --------------------------------------------------------------------------------------------


def _first_job(site: Site) -> None:
    _say("1. A job: its log streams to this terminal")
    site.must("run", IMAGE, "python", "-c", HELLO)


def _second_job(site: Site, results: Path) -> None:
    _say("2. A job that writes a file: all under /root/shared/results comes back as a tar")
    before = set(results.glob("*/*/results.tar"))
    site.must("run", IMAGE, "python", "-c", WRITE)
    new = sorted(set(results.glob("*/*/results.tar")) - before)
    if not new or not (new[0].parent / "result.json").exists():
        raise Stop(f"no results came into {results}", ExitCode.JOB_FAILED)
    listing = subprocess.run(["tar", "-tvf", str(new[0])], check=True, capture_output=True, text=True).stdout.strip()
    _tell(f"{new[0]} holds:")
    _tell(listing)
    _tell(f"{new[0].parent / 'result.json'} says what ran, where, and why the result is believed.")


def _array(site: Site) -> None:
    _say("3. Twenty jobs at once")
    site.must("submit", "--array", "1-20", IMAGE, "python", "-c", SQUARE)
