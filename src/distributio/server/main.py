"""Run a site: one process, or several that share a PostgreSQL database, each with its ledger and its daemons."""

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec
import structlog
import uvicorn

from distributio.server import boinc_bundle
from distributio.server import settings as settings_module
from distributio.server.app import Application
from distributio.server.daemons import assimilator, deleter, forecaster, transitioner, validator
from distributio.server.daemons.loop import Daemon
from distributio.server.ledger import Notices
from distributio.server.settings import Settings, SettingsError
from distributio.server.site import Site

log = structlog.get_logger("site")

GARBAGE_AFTER = 50_000  # objects made before circles are looked for; Python's own 700 is many times in one turn
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
LISTEN_SECONDS = 0.5  # how long a listener takes to notice that it is to stop


class AlreadyRunning(SettingsError):
    """Another site serves this data folder: stop it first, or choose another folder with --data."""


def configure_logging(settings: Settings) -> None:
    """Lines for people or JSON, from the chosen level on, to standard error."""
    if settings.log_level not in _LEVELS:
        raise SettingsError(f"log_level is {settings.log_level!r}: it may be {', '.join(_LEVELS)}")
    renderer: structlog.typing.Processor
    if settings.log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.log_level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


@contextlib.contextmanager
def only_one(data: Path) -> Iterator[IO[str]]:
    """Hold the data folder, or raise AlreadyRunning."""
    os.umask(0o077)
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = (data / "lock").open("w")
    except OSError as error:
        raise SettingsError(
            f"the data folder {data} cannot be used: {error.strerror}; choose one with --data"
        ) from error
    with lock as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"{data}: {AlreadyRunning.__doc__}") from None
        yield handle


def start_up(settings: Settings) -> tuple[Site, str | None]:
    """Bring the site up to where it can serve; return it, and the operator's token at the first start."""
    os.umask(0o077)
    site = Site(settings)
    token = site.prepare()
    boinc_bundle.install(site)
    if token is not None:
        write_private(settings.data / "operator-token", token + "\n")
    return site, token


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.rename(path)


def run(settings: Settings, site: Site, sockets: list[socket.socket], ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT."""
    # What is here now stays; a turn of the ledger makes thousands of objects that are gone after it, none of them in circles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_AFTER, 20, 50)
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(_serve(settings, site, sockets, ready))


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


async def _serve(settings: Settings, site: Site, sockets: list[socket.socket], ready: Callable[[], None]) -> None:
    site.start(asyncio.get_running_loop())
    daemons = make_daemons(site)
    listener = Listener(site) if site.database.is_postgresql else None
    for daemon in daemons:
        daemon.start()
    if listener is not None:
        listener.start()
    config = uvicorn.Config(
        Application(site),
        log_config=None,
        access_log=False,
        lifespan="off",
        http="httptools",
        ws="none",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        backlog=4096,
        server_header=False,
        date_header=False,
        proxy_headers=True,
    )
    server = _Server(config, site, ready)
    try:
        await server.serve(sockets)
    finally:
        if listener is not None:
            await asyncio.get_running_loop().run_in_executor(None, listener.close)
        await asyncio.get_running_loop().run_in_executor(None, _close_daemons, daemons)
        await asyncio.get_running_loop().run_in_executor(None, site.close)
        log.info("stopped")


class _Server(uvicorn.Server):
    """Uvicorn's server, which says when it listens and lets open questions go when it is to stop."""

    def __init__(self, config: uvicorn.Config, site: Site, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._site = site
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear signals on the event loop. Uvicorn's own way raises them again at the end, which would end the process before
        the ledger and the daemons have finished."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    def handle_exit(self, sig: int, frame: object) -> None:
        log.info("stopping", signal=signal.Signals(sig).name)
        self._site.hub.close()
        super().handle_exit(sig, frame)  # type: ignore[arg-type]  # uvicorn's own annotation is a FrameType


def make_daemons(site: Site) -> list[Daemon]:
    """The site's daemons, woken by what the ledger commits."""
    hand_over = Daemon("assimilator", lambda: assimilator.step(site), 5.0)
    delete = Daemon("deleter", lambda: deleter.step(site), 10.0)
    timer = Daemon("transitioner", lambda: transitioner.step(site, time.time), 1.0)
    checker = validator.Checker(site)
    check = Daemon("validator", checker.step, 1.0, checker.stop)
    sweep = Daemon("sweep", deleter.Sweep(site).step, 60.0)
    foresee = Daemon("forecaster", forecaster.Forecaster(site, time.time).step, 5.0)

    def wake(notices: Notices) -> None:
        if notices.hand_over:
            hand_over.wake()
        if notices.released:
            delete.wake()
        if notices.checking:
            check.wake()

    site.listeners.append(wake)
    return [hand_over, check, delete, timer, sweep, foresee]


def _close_daemons(daemons: list[Daemon]) -> None:
    for daemon in daemons:
        daemon.close()


class Listener:
    """Hears what the site's other processes committed, through PostgreSQL's notifications."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._closing = True
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            try:
                for text in self._site.database.notifications("distributio", LISTEN_SECONDS, lambda: self._closing):
                    self._site.hub.notify(msgspec.json.decode(text, type=Notices))
            except Exception as error:
                log.warning("not listening, trying again", error=str(error))
                time.sleep(1.0)


def bind(settings: Settings, *, shared: bool = False) -> socket.socket:
    """The socket to listen on. Raises SettingsError if somebody has it already."""
    host, port = settings_module.address(settings)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise SettingsError(
            f"cannot listen on {settings.listen}: {error.strerror}; choose another with --listen"
        ) from error
    sock.setblocking(False)
    return sock


class Crew:
    """Several server processes on one address: each is started again if it dies, until the crew is told to stop."""

    def __init__(self, command: list[str], count: int, address: tuple[str, int], ready: Callable[[], None]) -> None:
        self._command = command
        self._address = address
        self._ready: Callable[[], None] | None = ready
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * count
        self._closing = False

    def run(self) -> int:
        """Keep the workers running until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while not self._closing:
            for index, worker in enumerate(self._workers):
                if worker is None or worker.poll() is not None:
                    if worker is not None:
                        log.warning("a server process ended, another is started", code=worker.returncode)
                    self._workers[index] = subprocess.Popen(self._command)
            if self._ready is not None and _answers(self._address):
                self._ready()
                self._ready = None
            time.sleep(0.2)
        for worker in self._workers:
            if worker is not None:
                worker.terminate()
        for worker in self._workers:
            if worker is not None:
                worker.wait()
        return 0

    def _stop(self, number: int, frame: object) -> None:
        self._closing = True


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return False
    return True


def end_with_parent() -> None:
    """A worker stops when its crew is gone, however that ended (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
