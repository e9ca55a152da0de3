"""How numbers, times, sizes and commands read on a page."""

import datetime
import re
import shlex
from collections.abc import Callable, Iterable
from typing import Any

import markupsafe

from distributio.lifecycle import explain
from distributio.store.page_views import HostTask
from distributio.wire.native import TaskView

_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
_AGES = ((86_400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))
_LONG_AGO = 30 * 86_400.0
# Escape sequences colour a terminal; other control characters but tab and newline mean nothing on a page.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

_OUTCOMES = {
    "none": "",
    "success": "brought an output",
    "failed": "the command failed",
    "error": "the host could not run it",
    "no_reply": "nothing was heard of it",
    "abandoned": "given back by its host",
    "not_needed": "not needed any more",
    "invalid_output": "its output cannot be read",
}
_TASK_STATES = {"ready": "waits for a host", "in_progress": "running", "over": "over"}


def number(value: float) -> str:
    """12,345"""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """512 MiB"""
    amount = float(value)
    unit = 0
    while amount >= 1024 and unit < len(_SIZES) - 1:
        amount /= 1024
        unit += 1
    return f"{amount:.0f} {_SIZES[unit]}" if unit == 0 or amount >= 10 else f"{amount:.1f} {_SIZES[unit]}"


def span(seconds: float) -> str:
    """3 min 5 s"""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    for unit, name, part, part_name in _SPANS:
        if seconds >= unit:
            whole, rest = divmod(int(seconds), unit)
            return f"{whole} {name} {rest // part} {part_name}" if rest // part else f"{whole} {name}"
    return f"{seconds:.0f} s"


def ago(at: float, now: float) -> str:
    """3 minutes ago, or the date if that is long ago"""
    seconds = now - at
    if seconds > _LONG_AGO:
        return f"{_utc(at):%d %B %Y}".lstrip("0")
    if seconds < -1:
        return f"in {span(-seconds)}"
    for unit, name in _AGES:
        count = int(seconds // unit)
        if count >= 1:
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"


def instant(at: float) -> str:
    """2026-03-04 05:06:07 UTC"""
    return f"{_utc(at):%Y-%m-%d %H:%M:%S} UTC"


def machine_instant(at: float) -> str:
    """The instant as HTML's time element has it"""
    return f"{_utc(at):%Y-%m-%dT%H:%M:%SZ}"


def _utc(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at, datetime.UTC)


def command(parts: Iterable[str]) -> str:
    """A command as one would type it, what cannot be seen made visible"""
    return shlex.join(parts).translate(_VISIBLE)


def plain(text: str) -> str:
    """Text without what only a terminal understands"""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def outcome(task: TaskView | HostTask) -> str:
    """How a task stands or ended, in words"""
    if task.state != "over":
        return task.phase if task.phase not in ("", "running") else _TASK_STATES.get(task.state, task.state)
    return _OUTCOMES.get(task.outcome, task.outcome)


def reason(code: str) -> Any:
    """A reason code in words: sentence and advice"""
    return explain.because(code)


def ticks(text: str, job: str = "", batch: object = "") -> markupsafe.Markup:
    """A sentence whose `commands` are shown as such, about the job and batch that are meant if they are given"""
    parts = []
    for place, part in enumerate(text.split("`")):
        if place % 2 == 0:
            parts.append(markupsafe.escape(part))
            continue
        meant = part.replace("JOB", job or "JOB").replace("BATCH", str(batch or "BATCH"))
        parts.append(markupsafe.Markup("<code>{}</code>").format(meant))
    return markupsafe.Markup("").join(parts)


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "size": size,
    "span": span,
    "ago": ago,
    "instant": instant,
    "machine_instant": machine_instant,
    "command": command,
    "plain": plain,
    "outcome": outcome,
    "reason": reason,
    "ticks": ticks,
}
