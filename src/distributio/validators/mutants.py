"""What a cheat or a broken machine could have made of an output: the copies on which a validator is tried.

Each mutant differs from the output in one thing, the same one every time. The numbers changed are in the middle of the largest
file that has any, because what a validator looks at must not be only the beginning.
"""

import math
import struct
from collections.abc import Callable, Iterator

from msgspec import Struct

from distributio.validators import arrays, pictures, texts
from distributio.validators.pictures import Picture
from distributio.validators.verdicts import Output, Unreadable

MOST_FILE = 32 << 20  # larger files are left as they are
OFF_BY = (1e-9, 1e-6, 1e-3, 1e-2, 1e-1)

Change = Callable[[bytes], bytes | None]  # None: there is nothing in this file to change so


class Mutant(Struct, frozen=True):
    """A changed copy: what was done, to which file, and the files that are new or gone (None)."""

    what: str
    file: str
    files: dict[str, bytes | None]


def mutants(output: Output) -> Iterator[Mutant]:
    """The changed copies of an output, one after the other."""
    names = sorted((name for name in output.names if 0 < output.size(name) <= MOST_FILE), key=output.size, reverse=True)
    if names:
        first = names[0]
        yield Mutant("file missing", first, {first: None})
        yield Mutant("file renamed", first, {first: None, f"{first}.new": output.read(first)})
    for what, change in _CHANGES:
        for name in names:
            changed = change(output.read(name))
            if changed is not None:
                yield Mutant(what, name, {name: changed})
                break
    yield Mutant("file added", "added.txt", {"added.txt": b"added\n"})


def _bit(data: bytes) -> bytes:
    return _at(data, len(data) // 2, data[len(data) // 2] ^ 1)


def _byte(data: bytes) -> bytes:
    return _at(data, len(data) // 2, data[len(data) // 2] ^ 0xFF)


def _at(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + bytes([value]) + data[place + 1 :]


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _text(data: bytes) -> str | None:
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _swapped(data: bytes) -> bytes | None:
    lines = (_text(data) or "").splitlines(keepends=True)
    for place in [*range(len(lines) // 2, len(lines) - 1), *range(len(lines) // 2)]:
        one, other = lines[place : place + 2]
        if one.strip() != other.strip():
            lines[place : place + 2] = [other.rstrip("\r\n") + "\n", one.rstrip("\r\n") + "\n"]
            return "".join(lines).encode()
    return None


def _last_digit(data: bytes) -> bytes | None:
    found = _number_in(_text(data) or "")
    if found is None:
        return None
    text, start, end = found
    digits = text[start:end].lower().partition("e")[0]
    place = start + max(index for index, letter in enumerate(digits) if letter.isdigit())
    other = "1" if text[place] != "1" else "2"
    return (text[:place] + other + text[place + 1 :]).encode()


def _number_in(text: str) -> tuple[str, int, int] | None:
    """The middle one of a text's numbers that are not zero; those with a fraction before others."""
    places = [
        found.span()
        for found in texts.NUMBER.finditer(text)
        if any(letter in "123456789" for letter in found[0]) and math.isfinite(abs(texts.to_number(found[0])))
    ]
    fractions = [place for place in places if not text[slice(*place)].lstrip("+-").isdigit()]
    chosen = fractions or places
    return (text, *chosen[len(chosen) // 2]) if chosen else None


def _as_number(change: Callable[[float], float]) -> Change:
    def mutate(data: bytes) -> bytes | None:
        if data.startswith(arrays.MAGIC):
            return _in_array(data, change)
        found = _number_in(_text(data) or "")
        if found is None:
            return None
        text, start, end = found
        value = texts.to_number(text[start:end])
        if value.imag:
            return None
        return (text[:start] + repr(change(float(value.real))) + text[end:]).encode()

    return mutate


def _in_array(data: bytes, change: Callable[[float], float]) -> bytes | None:
    try:
        array = arrays.header_of(data)
    except Unreadable:
        return None
    unit, start = array.unit, len(data) - array.count * array.unit.size
    if array.dtype[1:] not in ("f2", "f4", "f8", "c8", "c16") or start < 0:
        return None
    for index in [*range(array.count // 2, array.count), *range(array.count // 2)]:
        place = start + index * unit.size
        value, *rest = unit.unpack_from(data, place)
        if value and math.isfinite(value):
            try:
                return data[:place] + unit.pack(change(value), *rest) + data[place + unit.size :]
            except (OverflowError, struct.error):
                return None
    return None


def _on_picture(change: Callable[[Picture], list[bytes]]) -> Change:
    def mutate(data: bytes) -> bytes | None:
        if not pictures.is_picture(data[:8]):
            return None
        try:
            picture = pictures.decode(data, "")
        except Unreadable:
            return None
        return pictures.encode(Picture(picture.width, picture.height, picture.channels, change(picture)))

    return mutate


def _one_pixel(picture: Picture) -> list[bytes]:
    rows, middle = list(picture.rows), picture.height // 2
    start = picture.width // 2 * picture.channels
    pixel = bytes(255 - sample for sample in rows[middle][start : start + picture.channels])
    rows[middle] = rows[middle][:start] + pixel + rows[middle][start + picture.channels :]
    return rows


def _painted_over(picture: Picture) -> list[bytes]:
    rows = list(picture.rows)
    start, width = picture.width // 4 * picture.channels, max(1, picture.width // 4) * picture.channels
    for y in range(picture.height // 4, picture.height // 4 + max(1, picture.height // 4)):
        rows[y] = (
            rows[y][:start]
            + bytes(255 - sample for sample in rows[y][start : start + width])
            + rows[y][start + width :]
        )
    return rows


def _brighter(share: float) -> Callable[[Picture], list[bytes]]:
    table = bytes(min(255, round(sample + 255 * share)) for sample in range(256))
    return lambda picture: [row.translate(table) for row in picture.rows]


def _off_by(share: float) -> Callable[[float], float]:
    return lambda value: value * (1 + share)


_CHANGES: tuple[tuple[str, Change], ...] = (
    ("one bit flipped", _bit),
    ("one byte flipped", _byte),
    ("truncated to half", _truncated),
    ("two lines swapped", _swapped),
    ("a last digit changed", _last_digit),
    ("a number not a number", _as_number(lambda value: math.nan)),
    ("a number without its sign", _as_number(lambda value: -value)),
    *((f"a number off by {share:g}", _as_number(_off_by(share))) for share in OFF_BY),
    ("a pixel inverted", _on_picture(_one_pixel)),
    ("a sixteenth painted over", _on_picture(_painted_over)),
    ("1 % brighter", _on_picture(_brighter(0.01))),
    ("10 % brighter", _on_picture(_brighter(0.1))),
)
