"""How commands print: values on standard output as a table, JSON or bare ids; everything else on standard error."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct

_COLOURS = {
    "done": "32", "active": "36", "running": "36", "checking": "36", "waiting": "33", "failed": "31", "ended": "31",
    "cancelled": "35", "away": "33", "suspended": "33", "detached": "35",
}  # fmt: skip


class Output(StrEnum):
    """What is printed on standard output."""

    TABLE = "table"
    JSON = "json"
    ID = "id"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="Print a table, JSON, or bare ids.")]
UrlOption = Annotated[str, typer.Option("--url", metavar="URL", help="The site. Default: the one you logged in to.")]
ProjectOption = Annotated[str, typer.Option("--project", metavar="NAME", help="The project. Default: your token's.")]


class Column(Struct, frozen=True):
    """A heading and how its cells are made."""

    title: str
    cell: Callable[[Any], str]
    right: bool = False


def note(text: str) -> None:
    """Tell a person something, without mixing it into what scripts read."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def line(text: str) -> None:
    """One line of the answer."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def json_of(value: Any) -> str:
    """A value as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def many(
    things: Iterable[Any], columns: Sequence[Column], output: Output, identify: Callable[[Any], object], nothing: str
) -> None:
    """Print a list. `nothing` is said, on standard error, when a table would be empty."""
    if output is Output.ID:
        for thing in things:
            line(str(identify(thing)))
        return
    rows = list(things)
    if output is Output.JSON:
        line(json_of(rows))
    elif rows:
        table([[column.cell(row) for column in columns] for row in rows], columns)
    else:
        note(nothing)


def one(thing: Any, facts: Sequence[tuple[str, str]], output: Output, identify: Callable[[Any], object]) -> None:
    """Print one thing; facts without a value are left out."""
    if output is Output.ID:
        line(str(identify(thing)))
    elif output is Output.JSON:
        line(json_of(thing))
    else:
        width = max((len(name) for name, _ in facts), default=0)
        for name, value in facts:
            if value:
                line(f"{name:<{width}}  {painted(value)}" if width else value)


def table(rows: Sequence[Sequence[str]], columns: Sequence[Column], write: Callable[[str], None] = line) -> None:
    """Print cells in aligned columns."""
    widths = [max([len(column.title), *(len(row[index]) for row in rows)]) for index, column in enumerate(columns)]

    def padded(text: str, index: int) -> str:
        fill = " " * (widths[index] - len(text))
        last = index == len(columns) - 1
        return fill + painted(text) if columns[index].right else painted(text) + ("" if last else fill)

    write("  ".join(padded(column.title, index) for index, column in enumerate(columns)).rstrip())
    for row in rows:
        write("  ".join(padded(clean(text), index) for index, text in enumerate(row)).rstrip())


def clean(text: str) -> str:
    """Text from elsewhere, on one line, and unable to steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def painted(text: str) -> str:
    """The word of a state in its colour, where colours are wanted."""
    colour = _COLOURS.get(text)
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and colours_wanted() else text


def colours_wanted() -> bool:
    """Whether standard output is a terminal whose owner has not said no."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def ago(instant: float | None) -> str:
    """When something was, seen from now."""
    from distributio.cli.quantities import seconds_text

    if instant is None:
        return ""
    return f"{seconds_text(max(0.0, time.time() - instant))} ago"


def shortened(text: str, most: int = 40) -> str:
    """Text that fits a column."""
    text = clean(text)
    return text if len(text) <= most else text[: most - 1] + "…"
