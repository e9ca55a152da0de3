"""For which jobs it was lately found that enough of the hosts that are here could run them.

That look goes over every host, and with a thousand of them costs more than the submission it is a courtesy of. Only a good
answer is remembered, and for a moment; where there is something to warn of, the hosts are looked at anew each time.
"""

import time

from distributio.lifecycle.dispatch import Shape

REMEMBER_SECONDS = 10.0
MOST = 1_000


class Presence:
    """Remembers good answers."""

    def __init__(self) -> None:
        self._until: dict[tuple[Shape, int], float] = {}

    def suffices(self, shape: Shape, quorum: int) -> bool:
        """Whether there were enough hosts a moment ago."""
        return self._until.get((shape, quorum), 0.0) > time.monotonic()

    def remember(self, shape: Shape, quorum: int) -> None:
        """There are enough now."""
        if len(self._until) >= MOST:
            self._until.clear()
        self._until[shape, quorum] = time.monotonic() + REMEMBER_SECONDS
