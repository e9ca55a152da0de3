"""The validators that every site has: which file is compared in which way.

Each compares the same set of files on both sides; files it has no special eye for must be the same byte for byte.
"""

import fnmatch
import re
from collections.abc import Callable, Sequence

from msgspec import Struct

from distributio.validators import arrays, documents, pictures, texts
from distributio.validators.names import Choice
from distributio.validators.numbers import Differs, Tally, Tolerance
from distributio.validators.verdicts import Agreement, Output, Unreadable, Verdict

_CHUNK = 1 << 20


class Validator(Struct, frozen=True):
    """A validator with its options in place."""

    check: Callable[[Output], Verdict]
    agree: Callable[[Output, Output], Agreement]


Look = Callable[[Output, str], None]  # raises Unreadable
Compare = Callable[[Output, Output, str, Tally], None]  # raises Differs or Unreadable


def of(choice: Choice) -> Validator:
    """The built-in validator of a choice."""
    look, compare = _WAYS[choice.name](choice)
    skipped = choice.all("skip")
    tolerance = Tolerance(
        rel=choice.number("rel") if choice.all("rel") else 0.0, abs=choice.number("abs") if choice.all("abs") else 0.0
    )

    def check(output: Output) -> Verdict:
        try:
            for name in _wanted(output, skipped):
                look(output, name)
        except Unreadable as error:
            return Verdict.refuse(str(error))
        return Verdict.accept()

    def agree(a: Output, b: Output) -> Agreement:
        tally = Tally(tolerance)
        try:
            for name in _common(_wanted(a, skipped), _wanted(b, skipped)):
                compare(a, b, name, tally)
        except (Differs, Unreadable) as error:
            return Agreement.no(str(error))
        return tally.agreement()

    return Validator(check, agree)


def _wanted(output: Output, skipped: Sequence[str]) -> list[str]:
    return [name for name in output.names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in skipped)]


def _common(a: list[str], b: list[str]) -> list[str]:
    for name in sorted({*a} ^ {*b}):
        raise Differs(f"{name}: only the {'first' if name in a else 'second'} output has this file")
    return a


def _anything(output: Output, name: str) -> None:
    """Any bytes will do."""


def _same_bytes(a: Output, b: Output, name: str, tally: Tally) -> None:
    if a.size(name) != b.size(name):
        raise Differs(f"{name}: {a.size(name)} and {b.size(name)} bytes")
    place = 0
    with a.open(name) as one, b.open(name) as other:
        while left := one.read(_CHUNK):
            right = other.read(len(left))
            if left != right:
                offset = next(i for i, (x, y) in enumerate(zip(left, right, strict=True)) if x != y)
                raise Differs(f"{name}: byte {place + offset} is {left[offset]:#04x} and {right[offset]:#04x}")
            place += len(left)


def _exact(choice: Choice) -> tuple[Look, Compare]:
    return _anything, _same_bytes


def _numeric(choice: Choice) -> tuple[Look, Compare]:
    def look(output: Output, name: str) -> None:
        if name.endswith(".npy"):
            with output.open(name) as stream:
                arrays.check(stream, name)
        elif name.endswith(".npz"):
            arrays.check_archive(output, name)
        elif name.endswith(".json"):
            documents.read(output, name)

    def compare(a: Output, b: Output, name: str, tally: Tally) -> None:
        if name.endswith(".npy"):
            with a.open(name) as one, b.open(name) as other:
                arrays.compare(one, other, name, tally)
        elif name.endswith(".npz"):
            arrays.compare_archives(a, b, name, tally)
        elif name.endswith(".json"):
            documents.compare(documents.read(a, name), documents.read(b, name), name, tally)
        elif texts.is_text(a, name) and texts.is_text(b, name):
            texts.compare_numbers(a, b, name, tally)
        else:
            _same_bytes(a, b, name, tally)

    return look, compare


def _json(choice: Choice) -> tuple[Look, Compare]:
    ignored = choice.all("ignore")

    def look(output: Output, name: str) -> None:
        if name.endswith(".json"):
            documents.read(output, name)

    def compare(a: Output, b: Output, name: str, tally: Tally) -> None:
        if name.endswith(".json"):
            documents.compare(documents.read(a, name), documents.read(b, name), name, tally, ignored)
        else:
            _same_bytes(a, b, name, tally)

    return look, compare


def _csv(choice: Choice) -> tuple[Look, Compare]:
    key, ignored = "".join(choice.all("key")), choice.all("ignore")

    def look(output: Output, name: str) -> None:
        if name.endswith((".csv", ".tsv")):
            output.text(name)

    def compare(a: Output, b: Output, name: str, tally: Tally) -> None:
        if name.endswith((".csv", ".tsv")):
            texts.compare_tables(a, b, name, tally, key, ignored)
        else:
            _same_bytes(a, b, name, tally)

    return look, compare


def _text(choice: Choice) -> tuple[Look, Compare]:
    ignored = [re.compile(pattern) for pattern in choice.all("ignore")]

    def compare(a: Output, b: Output, name: str, tally: Tally) -> None:
        if texts.is_text(a, name) and texts.is_text(b, name):
            texts.compare_lines(a, b, name, ignored)
        else:
            _same_bytes(a, b, name, tally)

    return _anything, compare


def _image(choice: Choice) -> tuple[Look, Compare]:
    whole, block = choice.number("similarity"), choice.number("block")

    def is_picture(output: Output, name: str) -> bool:
        with output.open(name) as stream:
            return pictures.is_picture(stream.read(8)) or name.lower().endswith((".png", ".ppm", ".pgm"))

    def look(output: Output, name: str) -> None:
        if is_picture(output, name):
            pictures.decode(output.read(name), name)

    def compare(a: Output, b: Output, name: str, tally: Tally) -> None:
        if not (is_picture(a, name) and is_picture(b, name)):
            _same_bytes(a, b, name, tally)
            return
        one, other = pictures.decode(a.read(name), name), pictures.decode(b.read(name), name)
        if (one.width, one.height, one.channels) != (other.width, other.height, other.channels):
            raise Differs(
                f"{name}: {one.width} x {one.height} pixels of {one.channels} channels, and "
                f"{other.width} x {other.height} of {other.channels}"
            )
        like = pictures.likeness(one, other)
        if like.whole < whole:
            raise Differs(f"{name}: the pictures are alike by {like.whole:.5f}; similarity={whole:g} is asked for")
        if like.worst < block:
            x, y = like.place
            raise Differs(f"{name}: the block at {x},{y} is alike by {like.worst:.5f}; block={block:g} is asked for")
        tally.remark = f"{name}: alike by {like.whole:.5f}, its worst block by {like.worst:.5f}"

    return look, compare


_WAYS: dict[str, Callable[[Choice], tuple[Look, Compare]]] = {
    "exact": _exact,
    "numeric": _numeric,
    "json": _json,
    "csv": _csv,
    "text": _text,
    "image": _image,
}
