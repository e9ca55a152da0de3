"""How much of a task's log the site has, and what it is sent next."""

import random
import time
from collections.abc import Callable

from distributio.agent.site import Refused, Site, SiteAway, pause_seconds

PIECE_BYTES = 256 << 10
EVERY_SECONDS = 0.2
INLINE_BYTES = 64 << 10  # an end of a log up to this size travels inside the report
_TAIL_BYTES = 32 << 10  # of a log the site has stopped taking, its end

Read = Callable[[int, int], bytes]  # offset and most bytes to what is there


class LogStream:
    """One task's log on its way to the site. The site's own count of bytes is what holds; each piece says where it
    belongs, so that a piece sent twice is kept once."""

    def __init__(self, site: Site, task: int, sent: int, draw: random.Random, *, is_sure: bool) -> None:
        self._site = site
        self._task = task
        self._draw = draw
        self._not_before = 0.0
        self._failures = 0
        self.sent = sent
        self.is_sure = is_sure  # of what was sent: not after a restart, until the site has said it
        self.is_full = False  # the site takes no more

    def push(self, read: Read) -> bool:
        """Send what is there, if it is time to. True if there may be more to send at once."""
        now = time.monotonic()
        if self.is_full or now < self._not_before:
            return False
        data = read(self.sent, PIECE_BYTES)
        if not data:
            return False
        self._not_before = now + EVERY_SECONDS
        try:
            self._send(data)
        except SiteAway as error:
            self._failures += 1
            self._not_before = time.monotonic() + pause_seconds(self._failures, self._draw, error.after_seconds)
            return False
        self._failures = 0
        return len(data) == PIECE_BYTES

    def drain(self, read: Read, leave_bytes: int) -> None:
        """Send all but the last few bytes, which fit into the report. Raises SiteAway."""
        if not self.is_sure:
            self._send(b"")
        while not self.is_full and len(read(self.sent, leave_bytes + 1)) > leave_bytes:
            self._send(read(self.sent, PIECE_BYTES))

    def rest(self, read: Read) -> tuple[int, bytes]:
        """What goes into the report: from which offset on, and the bytes."""
        if not self.is_full:
            return self.sent, read(self.sent, INLINE_BYTES)
        end, offset = b"", self.sent
        while piece := read(offset, PIECE_BYTES):
            offset += len(piece)
            end = (end + piece)[-_TAIL_BYTES:]
        return offset - len(end), end

    def _send(self, data: bytes) -> None:
        offset = self.sent
        try:
            held = self._site.send_log(self._task, offset, data)
        except Refused:
            self.is_full = True  # the site no longer wants this task's log; the report will say the rest
            return
        if held == offset and data:
            self.is_full = True
        self.sent = held
        self.is_sure = True
