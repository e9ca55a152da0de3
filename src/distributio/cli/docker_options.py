"""How the command line of `run` and `submit` is understood: docker's way, up to the image; the rest is the job's.

Nothing is silently ignored: an option is taken, or changes nothing because it holds for every job anyway, or is refused
with the reason and what to do instead.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from msgspec import Struct, field

from distributio.cli import quantities, refused_options
from distributio.cli.exits import Stop
from distributio.cli.option_table import OPTIONS, Option


class Given(Struct, kw_only=True):
    """A command line that has been understood, nothing looked up yet."""

    image: str = ""
    command: list[str] = []
    help: bool = False
    env: list[str] = []
    env_files: list[str] = []
    volumes: list[str] = []
    mounts: list[str] = []
    inputs: list[str] = []
    workdir: str = ""
    entrypoint: str | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    memory_swap: str = ""
    gpus: int | None = None
    name: str = ""
    user: str = ""
    tmpfs: list[str] = []
    shm_bytes: int | None = None
    ulimits: list[str] = []
    init: bool = False
    platform: str = ""
    labels: list[str] = []
    network: bool = False
    read_only: bool = True
    processes: int | None = None
    pull: str = "missing"
    interactive: bool = False
    changes_nothing: Any = None
    detach: bool = False
    replicas: int | None = None
    quorum: int | str | None = None  # a number, or "adaptive"
    alike: str = ""
    retries: int | None = None
    wall_seconds: float | None = None
    deadline_seconds: float | None = None
    disk_bytes: int | None = None
    log_bytes: int | None = None
    max_tasks: int | None = None
    local: bool = False
    priority: int | None = None
    validator: str | None = None
    writable: bool = False
    results: str = "results"
    no_results: bool = False
    project: str = ""
    url: str = ""
    output: str = "table"
    arrays: list[str] = []
    each_line: list[str] = []
    matrices: list[str] = []
    ringers: str = ""
    schema: bool = False
    named: set[str] = field(default_factory=set)  # the fields that were given on the command line


_MANY_AXES = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")  # never the beginning of an image's name


class _Words:
    """The command line, word by word."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._next = 0

    def peek(self) -> str | None:
        return self._words[self._next] if self._next < len(self._words) else None

    def take(self) -> str:
        self._next += 1
        return self._words[self._next - 1]

    def rest(self) -> list[str]:
        return self._words[self._next :]


def parse(words: Sequence[str], *, many: bool = False) -> Given:
    """Understand `[options] IMAGE [COMMAND...]`; with `many`, the options that make many jobs too."""
    sections = ("docker", "nothing", "ours", "many") if many else ("docker", "nothing", "ours")
    known = {name: option for option in OPTIONS if option.section in sections for name in option.names}
    given = Given()
    line = _Words(words)
    while (word := line.peek()) is not None:
        if word == "--":
            line.take()
            break
        if not word.startswith("-") or word == "-":
            break
        line.take()
        if word == "--help":
            given.help = True
        elif word.startswith("--"):
            _long(given, known, word, line)
        else:
            _short(given, known, word, line)
    rest = line.rest()
    if rest:
        given.image, given.command = rest[0], rest[1:]
    return given


def _long(given: Given, known: dict[str, Option], word: str, line: _Words) -> None:
    name, equals, value = word.partition("=")
    option = _find(known, name)
    if not option.value:
        _put(given, option, value if equals else "true")
        return
    _put(given, option, value if equals else _value_of(option, name, line))
    if option.goes_to == "matrices":
        while (following := line.peek()) is not None and _MANY_AXES.match(following):
            _put(given, option, line.take())


def _short(given: Given, known: dict[str, Option], word: str, line: _Words) -> None:
    """One dash, any number of switches, and perhaps an option whose value may be attached: -it, -eNAME=1, -m 1g."""
    letters = word[1:]
    while letters:
        name, letters = f"-{letters[0]}", letters[1:]
        option = _find(known, name)
        if option.value:
            attached = letters.removeprefix("=")
            _put(given, option, attached if letters else _value_of(option, name, line))
            return
        if letters.startswith("="):
            _put(given, option, letters[1:])
            return
        _put(given, option, "true")


def _find(known: dict[str, Option], name: str) -> Option:
    option = known.get(name)
    if option is not None:
        return option
    reason = refused_options.why(name)
    if reason:
        raise Stop(f"{name} cannot be granted on a lent machine. {reason}")
    if any(name in option.names for option in OPTIONS):
        raise Stop(f"{name} makes many jobs of one: use it with `distributio submit`.")
    close = get_close_matches(name, known, n=1)
    guess = f" Did you mean {close[0]}?" if close else ""
    raise Stop(
        f"There is no option {name}.{guess} Options of the command in the container go after the image; "
        "`distributio run --help` lists ours."
    )


def _value_of(option: Option, name: str, line: _Words) -> str:
    if line.peek() is None:
        raise Stop(f"{name} needs a value: {name} {option.value}.")
    return line.take()


def _put(given: Given, option: Option, text: str) -> None:
    parse_value = option.parse if option.value or option.parse is not str else quantities.switch
    try:
        value = parse_value(text)
    except Stop as error:
        if str(error).startswith("-"):
            raise
        raise Stop(f"{option.names[-1]}: {error}") from error
    given.named.add(option.goes_to)
    if option.repeats:
        value = [*getattr(given, option.goes_to), value]
    setattr(given, option.goes_to, value)


def help_rows(*sections: str) -> list[tuple[str, str]]:
    """Options of these sections as help shows them."""
    return [
        (", ".join(option.names) + (f" {option.value}" if option.value else ""), option.help)
        for option in OPTIONS
        if option.section in sections
    ]
