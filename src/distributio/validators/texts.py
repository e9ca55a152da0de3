"""Whether two texts say the same: line by line with numbers read as numbers, cell by cell, or without what is to be ignored."""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TextIO

from distributio.validators.numbers import Differs, Tally
from distributio.validators.verdicts import Output, Unreadable

MOST_LINE = 16 << 20
_PROBE = 1 << 16
# A number that stands for itself: a digit within a word, a version or a digest is text, and must be the same.
NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?[jJ]?(?![\w.])|(?<![\w.])[-+]?(?:nan|inf(?:inity)?)(?!\w)",
    re.IGNORECASE,
)


def is_text(output: Output, name: str) -> bool:
    """Whether a file begins like text in UTF-8."""
    with output.open(name) as stream:
        start = stream.read(_PROBE)
    if b"\0" in start:
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4 and len(start) == _PROBE
    return True


def _open(output: Output, name: str) -> TextIO:
    return output.path(name).open(encoding="utf-8", errors="surrogateescape", newline=None)


def _lines(output: Output, name: str) -> Iterator[str]:
    with _open(output, name) as stream:
        while line := stream.readline(MOST_LINE):
            yield line


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


# --- lines, with numbers ------------------------------------------------------------------------------------------


def compare_numbers(a: Output, b: Output, name: str, tally: Tally) -> None:
    """Compare two texts in which numbers may differ a little, and the width of blanks with them. Raises Differs."""
    pairs = itertools.zip_longest(_lines(a, name), _lines(b, name))
    for number, (one, other) in enumerate(pairs, 1):
        if one == other:
            continue
        if one is None or other is None:
            more, which = (other, "second") if one is None else (one, "first")
            if more.strip():
                raise Differs(f"{name}, line {number}: only the {which} output has {_shown(more.strip())}")
            continue
        _compare_line(one, other, f"{name}, line {number}", tally)


def _compare_line(a: str, b: str, where: str, tally: Tally) -> None:
    words_a, words_b = _literals(a), _literals(b)
    if words_a != words_b:
        raise Differs(f"{where}: {_shown(a.strip())} and {_shown(b.strip())}")
    for index, (one, other) in enumerate(zip(NUMBER.findall(a), NUMBER.findall(b), strict=True), 1):
        tally.compare(to_number(one), to_number(other), f"{where}, number {index}")


def _literals(line: str) -> list[str]:
    return [" ".join(part.split()) for part in NUMBER.split(line)]


def to_number(text: str) -> complex:
    """A number as programs print it, Fortran's among them."""
    text = text.lower()
    if text.endswith("j"):
        return complex(0.0, float(text[:-1].replace("d", "e")))
    if "f" in text or "n" in text:
        return float(text)
    if text.lstrip("+-").isdigit() and len(text) < 400:
        return int(text)
    return float(text.replace("d", "e"))


# --- tables -------------------------------------------------------------------------------------------------------


def compare_tables(a: Output, b: Output, name: str, tally: Tally, key: str = "", ignored: Sequence[str] = ()) -> None:
    """Compare two CSV files cell by cell: cells that are numbers as numbers, others as text. With a `key`, the order of rows
    does not matter. Raises Differs, Unreadable."""
    head_a, rows_a = _table(a, name, key)
    head_b, rows_b = _table(b, name, key)
    if head_a != head_b:
        raise Differs(f"{name}: the columns are {_shown(', '.join(head_a))} and {_shown(', '.join(head_b))}")
    if len(rows_a) != len(rows_b):
        raise Differs(f"{name}: {len(rows_a)} and {len(rows_b)} rows")
    left_out = {head_a.index(column) for column in ignored if column in head_a}
    for number, (one, other) in enumerate(zip(rows_a, rows_b, strict=True), 2):
        if one == other:
            continue
        if len(one) != len(other):
            raise Differs(f"{name}, row {number}: {len(one)} and {len(other)} cells")
        for column, (x, y) in enumerate(zip(one, other, strict=True)):
            if column not in left_out and x != y:
                title = head_a[column] if column < len(head_a) else str(column + 1)
                _compare_cell(x.strip(), y.strip(), f"{name}, row {number}, column {_shown(title)}", tally)


def _compare_cell(a: str, b: str, where: str, tally: Tally) -> None:
    if NUMBER.fullmatch(a) and NUMBER.fullmatch(b):
        tally.compare(to_number(a), to_number(b), where)
    elif a != b:
        raise Differs(f"{where}: {_shown(a)} and {_shown(b)}")


def _table(output: Output, name: str, key: str) -> tuple[list[str], list[list[str]]]:
    text = output.text(name).removeprefix("\ufeff")
    try:
        dialect: type[csv.Dialect] | str = csv.Sniffer().sniff(text[:8192].partition("\n")[0], ",;\t|")
    except csv.Error:
        dialect = "excel"
    try:
        rows = [row for row in csv.reader(text.splitlines(), dialect) if row]
    except csv.Error as error:
        raise Unreadable(f"{name}: not a table: {error}") from None
    head, *rest = rows or [[]]
    if key:
        if key not in head:
            raise Unreadable(f"{name}: there is no column {_shown(key)} to sort by; there is: {', '.join(head)[:200]}")
        place = head.index(key)
        rest.sort(key=lambda row: (row[place] if place < len(row) else "", row))
    return head, rest


# --- lines, without what is ignored -------------------------------------------------------------------------------


def compare_lines(a: Output, b: Output, name: str, ignored: Sequence[re.Pattern[str]]) -> int:
    """Compare two texts without what is ignored; return the number of lines. A line that is ignored whole need not be there.
    Raises Differs."""
    count = 0
    for one, other in itertools.zip_longest(_kept(a, name, ignored), _kept(b, name, ignored)):
        count += 1
        if one is None or other is None:
            which, (number, line) = ("second", other) if one is None else ("first", one)
            raise Differs(f"{name}, line {number}: only the {which} output has {_shown(line)}")
        if one[1] != other[1]:
            lines = f"line {one[0]}" if one[0] == other[0] else f"lines {one[0]} and {other[0]}"
            raise Differs(f"{name}, {lines}: {_shown(one[1])} and {_shown(other[1])}")
    return count


def _kept(output: Output, name: str, ignored: Sequence[re.Pattern[str]]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_lines(output, name), 1):
        text = line.rstrip("\n")
        for pattern in ignored:
            text = pattern.sub("", text)
        if text.strip() or text == line.rstrip("\n"):
            yield number, text.rstrip()
