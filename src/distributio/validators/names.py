"""Which validators there are, and what `numeric:rel=1e-6,abs=1e-9` means.

A name, then options after a colon: NAME=VALUE, separated by commas; `\\,` is a comma within a value. What is left out has its
default, and a batch keeps the whole of it, so that its record says with which tolerance its results were compared.
"""

import ast
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from distributio.lifecycle.model import EXACT

MOST_SPEC = 2_000
MOST_SOURCE = 1 << 20
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_OPTION = re.compile(r"[a-z_][a-z0-9_]{0,40}")


class BadValidator(ValueError):
    """What names a validator is not understood; the message says what is wrong and what there is."""


class Option(Struct, frozen=True):
    """One option of a built-in validator. `shape` checks a value and gives its normal form, or raises ValueError."""

    name: str
    default: str | None  # None: it is left out unless it is given
    shape: Callable[[str], str]
    sentence: str
    may_repeat: bool = False


def _number(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError("must be a number of zero or more, as in 1e-6")
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _share(text: str) -> str:
    value = _number(text)
    if float(value) > 1:
        raise ValueError("must lie between 0 and 1, as in 0.99")
    return value


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return text


def _word(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("must not be empty")
    return text


_REL = Option("rel", "1e-06", _number, "Largest difference of two numbers, as a share of the larger.")
_ABS = Option("abs", "0", _number, "Largest difference of two numbers, whatever their size.")
_NO_REL = Option("rel", "0", _number, _REL.sentence)
_SKIP = Option("skip", None, _word, "Files that are not compared, as in *.log.", may_repeat=True)


class BuiltIn(Struct, frozen=True):
    """A validator that every site has."""

    name: str
    sentence: str
    options: tuple[Option, ...]


BUILT_IN: tuple[BuiltIn, ...] = (
    BuiltIn(EXACT, "Byte for byte the same.", ()),
    BuiltIn(
        "numeric",
        "The same but for small differences of numbers: in text, CSV, JSON and NumPy files; other files byte for byte.",
        (_REL, _ABS, _SKIP),
    ),
    BuiltIn(
        "json",
        "JSON with the same content, in whatever order and layout; other files byte for byte.",
        (_NO_REL, _ABS, Option("ignore", None, _word, "A key that is not compared.", may_repeat=True), _SKIP),
    ),
    BuiltIn(
        "csv",
        "Tables with the same cells; other files byte for byte.",
        (
            _NO_REL,
            _ABS,
            Option("key", None, _word, "A column by which rows are sorted before they are compared."),
            Option("ignore", None, _word, "A column that is not compared.", may_repeat=True),
            _SKIP,
        ),
    ),
    BuiltIn(
        "text",
        "The same lines, whatever ends them, without the parts that match.",
        (Option("ignore", None, _pattern, "A regular expression for what is not compared.", may_repeat=True), _SKIP),
    ),
    BuiltIn(
        "image",
        "PNG and PPM pictures that look alike; other files byte for byte.",
        (
            Option("similarity", "0.99", _share, "How alike the whole must be: 1 is the same picture."),
            Option("block", "0.9", _share, "How alike each block of 16 by 16 pixels must be."),
            _SKIP,
        ),
    ),
    BuiltIn(
        "program",
        "A command in a container decides, where the site allows it.",
        (
            Option("image", None, _word, "The image."),
            Option(
                "command",
                None,
                _word,
                "The command; it gets `check A` or `agree A B`, and ends with 0 for yes, 1 for no.",
            ),
            Option("seconds", "60", _number, "How long one question may take; the site's limit holds as well."),
        ),
    ),
)
_BY_NAME = {each.name: each for each in BUILT_IN}
PROGRAM = "program"


class Choice(Struct, frozen=True):
    """A validator with its options in place. `is_own`: it is the site's own."""

    name: str
    options: tuple[tuple[str, str], ...] = ()
    is_own: bool = False

    @property
    def text(self) -> str:
        """The choice as it is written."""
        if not self.options:
            return self.name
        return f"{self.name}:" + ",".join(f"{name}={_escaped(value)}" for name, value in self.options)

    def all(self, option: str) -> list[str]:
        """Every value of an option."""
        return [value for name, value in self.options if name == option]

    def one(self, option: str) -> str:
        """The value of an option that has a default."""
        return self.all(option)[-1]

    def number(self, option: str) -> float:
        """The same as a number."""
        return float(self.one(option))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def split(spec: str) -> tuple[str, list[tuple[str, str]]]:
    """The name and the options of a spec, as written. Raises BadValidator."""
    name, colon, rest = spec.partition(":")
    if len(spec) > MOST_SPEC:
        raise BadValidator(f"longer than {MOST_SPEC} characters")
    if not _NAME.fullmatch(name):
        raise BadValidator(f"{name[:80]!r} is not a validator's name; write NAME or NAME:OPTION=VALUE,...")
    options = []
    for part in re.findall(r"(?:[^,\\]|\\.|\\$)+", rest, re.DOTALL):
        option, equals, value = part.partition("=")
        if not equals or not _OPTION.fullmatch(option.strip()):
            raise BadValidator(f"{name}: {part[:80]!r} is not OPTION=VALUE")
        options.append((option.strip(), re.sub(r"\\([,\\])", r"\1", value)))
    if colon and not options:
        raise BadValidator(f"{name}: nothing follows the colon; leave it out, or write {name}:OPTION=VALUE")
    return name, options


def choose(spec: str, own: Mapping[str, str]) -> Choice:
    """What a spec means, with its defaults, among the built-in validators and the site's own (name to Python source). Raises
    BadValidator."""
    name, given = split(spec)
    if name in _BY_NAME:
        return _built_in(_BY_NAME[name], given)
    if name in own:
        known = own_options(name, own[name])
        for option, _ in given:
            if known is not None and option not in known:
                raise BadValidator(f"{name}: there is no option {option!r}; it takes: {', '.join(known) or 'none'}")
        return Choice(name, tuple(given), is_own=True)
    there_is = ", ".join([*_BY_NAME, *sorted(own)])
    raise BadValidator(f"{name!r} is not known; there is: {there_is}")


def _built_in(kind: BuiltIn, given: list[tuple[str, str]]) -> Choice:
    known = {option.name: option for option in kind.options}
    values: list[tuple[str, str]] = []
    for name, value in given:
        if name not in known:
            raise BadValidator(f"{kind.name}: there is no option {name!r}; it takes: {', '.join(known) or 'none'}")
        if not known[name].may_repeat and name in dict(values):
            raise BadValidator(f"{kind.name}: {name} is given twice")
        try:
            values.append((name, known[name].shape(value)))
        except ValueError as error:
            raise BadValidator(f"{kind.name}: {name}={value[:80]!r} {error}") from None
    there = dict(values)
    defaults = [
        (each.name, each.default) for each in kind.options if each.name not in there and each.default is not None
    ]
    if kind.name == PROGRAM and not {"image", "command"} <= there.keys():
        raise BadValidator("program: name the image and the command, as in program:image=NAME,command=/check")
    return Choice(kind.name, (*values, *defaults))


# --- a site's own -------------------------------------------------------------------------------------------------


def own_sources(folder: Path) -> dict[str, str]:
    """The validators in a site's folder: NAME.py, by name."""
    if not folder.is_dir():
        return {}
    return {
        file.stem: file.read_text(encoding="utf-8", errors="replace")
        for file in sorted(folder.glob("*.py"))
        if _NAME.fullmatch(file.stem) and file.stat().st_size <= MOST_SOURCE
    }


def own_options(name: str, source: str) -> list[str] | None:
    """The options that a site's own validator takes: what `agree` takes besides the two outputs. None: any. Raises
    BadValidator if it cannot be read; it is not run."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadValidator(f"{name}: the site's own validator is not Python: {error}; tell the operator") from None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "agree":
            arguments = node.args
            if arguments.kwarg is not None:
                return None
            return [each.arg for each in (*arguments.args[2:], *arguments.kwonlyargs)]
    raise BadValidator(f"{name}: the site's own validator has no function agree(a, b); tell the operator")
