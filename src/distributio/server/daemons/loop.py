"""The one loop that every daemon shares: work while there is any, then wait to be woken or for the next look."""

import threading
import time
from collections.abc import Callable

import structlog

from distributio.server.ledger import LedgerClosed
from distributio.store.database import DatabaseUnavailable

log = structlog.get_logger("daemon")

Step = Callable[[], bool]  # does one piece of work; returns whether there was any

REST_AFTER_ERROR_SECONDS = 2.0


class Daemon:
    """A thread around a step. On PostgreSQL one process of the site is the leader for each daemon's name."""

    def __init__(self, name: str, step: Step, look_seconds: float, stop: Callable[[], None] | None = None) -> None:
        self.name = name
        self._stop = stop  # hurries a step that may be long
        self._step = step
        self._look_seconds = look_seconds
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """There may be work."""
        self._wake.set()

    def close(self) -> None:
        """Finish the step that runs, then stop."""
        self._closing = True
        self._wake.set()
        if self._stop is not None:
            self._stop()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                while not self._closing and self._step():
                    pass
            except LedgerClosed:
                return
            except DatabaseUnavailable as error:
                log.warning("the database is away", daemon=self.name, error=str(error))
                time.sleep(REST_AFTER_ERROR_SECONDS)
            except Exception as error:
                # A step can be done again from the start, so the daemon goes on after whatever happened.
                log.error("step failed, it is tried again", daemon=self.name, exc_info=error)
                time.sleep(REST_AFTER_ERROR_SECONDS)
            self._wake.wait(self._look_seconds)
