"""How people write sizes, times and ranges, and how we write them back."""

import re

from distributio.cli.exits import Stop

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)([smhdw]))", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_RANGE = re.compile(r"(-?\d+)(?:-(-?\d+)(?::(\d+))?)?")
_DOTS = re.compile(r"(-?\d+)\.\.(-?\d+)")

MOST_JOBS = 1_000_000


def size(text: str) -> int:
    """Bytes, from docker's way of writing them: 512m, 1.5g, 1048576."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Stop(f"{text!r} is not a size. Write a number and a unit, such as 512m or 2g.")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def seconds(text: str) -> float:
    """Seconds, from 90, 90s, 5m, 2h, 1d or a sequence such as 1h30m."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise Stop(f"{text!r} is not a length of time. Write a number and a unit, such as 90s, 30m, 2h or 1d.")
    return sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts)


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise Stop(f"{text!r} is not a whole number.") from error


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError as error:
        raise Stop(f"{text!r} is not a number.") from error


def switch(text: str) -> bool:
    """True or false, as docker reads them."""
    words = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}
    if text.lower() not in words:
        raise Stop(f"{text!r} is neither true nor false.")
    return words[text.lower()]


def indices(text: str) -> list[str]:
    """The numbers of an array: 1-1000, 0-100:10, 1,5,9 or a mixture, in the order given."""
    values: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise Stop(f"{text!r} is not an array. Write ranges such as 1-1000, 0-100:10 or 1,5,9.")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        step = int(match[3]) if match[3] is not None else 1
        if step == 0 or last < first:
            raise Stop(f"The range {part!r} is empty. Write the smaller number first, and a step of at least 1.")
        if (last - first) // step + 1 + len(values) > MOST_JOBS:
            raise Stop(
                f"{text!r} makes more than {MOST_JOBS:,} jobs, the most a batch may have. Submit several batches."
            )
        values.extend(str(value) for value in range(first, last + 1, step))
    return values


def axis(text: str) -> tuple[str, list[str]]:
    """A name and its values: lr=0.1,0.2 or seed=0..9."""
    name, equals, values = text.partition("=")
    if not equals or not name.isidentifier() or not name.isascii():
        raise Stop(f"{text!r} is not NAME=VALUE,VALUE... with a name of letters, digits and underscores.")
    span = _DOTS.fullmatch(values)
    if span is None:
        return name, values.split(",")
    first, last = int(span[1]), int(span[2])
    if last < first or last - first >= MOST_JOBS:
        raise Stop(f"The range {values!r} is empty or has more than {MOST_JOBS:,} values.")
    return name, [str(value) for value in range(first, last + 1)]


def size_text(count: int) -> str:
    """Bytes in three digits or so, in the units of disks: 17 MB."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError("the loop returns at its last unit")


def seconds_text(length: float) -> str:
    """A length of time with its two largest units: 2 h 5 min."""
    if length < 10:
        return f"{length:.1f} s"
    if length < 60:
        return f"{length:.0f} s"
    minutes, rest = divmod(round(length), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"
