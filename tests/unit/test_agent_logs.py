"""A task's log reaches the site whole and in order, whatever the site holds already and however often it is away."""

import random

import pytest

from distributio.agent.logs import INLINE_BYTES, PIECE_BYTES, LogStream
from distributio.agent.site import Refused, SiteAway, pause_seconds
from distributio.wire.native import Problem


class Kept:
    """What a site keeps of one log; it may be away, refuse, or take only so much."""

    def __init__(self, most: int = 1 << 40) -> None:
        self.data = b""
        self.most = most
        self.away = 0
        self.refuses = False

    def send_log(self, task: int, offset: int, data: bytes) -> int:
        if self.away:
            self.away -= 1
            raise SiteAway("away")
        if self.refuses:
            raise Refused(404, Problem(title="No such task", status=404, code="not-found"), {})
        if offset == len(self.data):
            self.data += data[: self.most - len(self.data)]
        return len(self.data)


def stream(kept: Kept, sent: int = 0, *, is_sure: bool = True) -> LogStream:
    return LogStream(kept, 1, sent, random.Random(1), is_sure=is_sure)  # type: ignore[arg-type]


def reader(text: bytes):  # type: ignore[no-untyped-def]
    return lambda offset, most: text[offset : offset + most]


TEXT = random.Random(3).randbytes(PIECE_BYTES * 2 + INLINE_BYTES + 77)


def test_all_but_the_end_is_sent_and_the_end_travels_with_the_report() -> None:
    kept = Kept()
    log = stream(kept)
    log.drain(reader(TEXT), INLINE_BYTES)
    offset, rest = log.rest(reader(TEXT))
    assert offset == len(kept.data)
    assert kept.data + rest == TEXT
    assert len(rest) <= INLINE_BYTES


@pytest.mark.parametrize("held", [0, 5, 300, 10_000])
def test_after_a_restart_the_site_says_how_much_it_holds(held: int) -> None:
    kept = Kept()
    kept.data = TEXT[:held]
    log = stream(kept, sent=min(held, 5), is_sure=False)
    log.drain(reader(TEXT[:20_000]), INLINE_BYTES)
    offset, rest = log.rest(reader(TEXT[:20_000]))
    assert offset == held
    assert kept.data + rest == TEXT[:20_000]


def test_a_stale_offset_is_corrected_while_streaming() -> None:
    kept = Kept()
    kept.data = TEXT[:1000]
    log = stream(kept, sent=200, is_sure=False)
    log.push(reader(TEXT[:1500]))
    assert kept.data == TEXT[:1000]
    assert log.sent == 1000


def test_a_site_that_is_away_is_asked_again_later_and_not_at_once() -> None:
    kept = Kept()
    kept.away = 1
    log = stream(kept)
    assert not log.push(reader(b"abc"))
    assert not log.push(reader(b"abc"))
    assert kept.data == b""
    log.drain(reader(b"abc"), 0)
    assert kept.data == b"abc"


def test_of_a_log_the_site_takes_no_more_of_the_end_is_reported() -> None:
    kept = Kept(most=1000)
    log = stream(kept)
    log.drain(reader(TEXT), INLINE_BYTES)
    assert log.is_full
    offset, rest = log.rest(reader(TEXT))
    assert kept.data == TEXT[:1000]
    assert TEXT[offset:] == rest
    assert 0 < len(rest) <= INLINE_BYTES


def test_a_site_that_wants_no_log_gets_none() -> None:
    kept = Kept()
    kept.refuses = True
    log = stream(kept)
    log.push(reader(b"abc"))
    assert log.is_full


def test_pauses_grow_to_a_minute_and_are_scattered() -> None:
    draw = random.Random(1)
    pauses = [pause_seconds(failures, draw) for failures in range(1, 40)]
    assert pauses[0] <= 0.25
    assert all(30 <= pause <= 60 for pause in pauses[10:])
    assert len({round(pause, 3) for pause in pauses[10:]}) > 20
    assert pause_seconds(1, draw, at_least=7.0) == 7.0
