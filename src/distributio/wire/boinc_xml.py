"""How BOINC's XML is read and written: by looking for tags, because what clients send is not well-formed XML.

A volunteer's report may hold control bytes, bare ampersands and even the end of its own CDATA section; a strict parser would
lose the work. Looking for tags needs no entities, no recursion and one pass, so nothing that is sent can blow up. Documents
that people write (remote submission, templates, preferences) are read by a strict reader instead, with guards.
"""

import re
from collections.abc import Iterator
from xml.parsers import expat

from msgspec import Struct

MOST_DEPTH = 32
MOST_ELEMENTS = 200_000
_ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}
_REFERENCE = re.compile(r"&(lt|gt|amp|quot|apos|#[0-9]{1,7}|#x[0-9a-fA-F]{1,6});")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MOST_NUMBER = 1e30


class BadDocument(ValueError):
    """This is not a document we read; the message says what is wrong with it."""


# --- reading by looking for tags ----------------------------------------------------------------------------------


def inside(data: str, tag: str, start: int = 0) -> str | None:
    """What stands between the first <tag> and its end, or None."""
    begin = data.find(f"<{tag}>", start)
    if begin < 0:
        return None
    begin += len(tag) + 2
    end = data.find(f"</{tag}>", begin)
    return None if end < 0 else data[begin:end]


def text(data: str, tag: str, default: str = "") -> str:
    """The first element's text, unescaped and stripped."""
    found = inside(data, tag)
    return default if found is None else unescape(found.strip())


def number(data: str, tag: str, default: float = 0.0) -> float:
    """The first element's number. What is no number, not finite, or absurd counts as the default."""
    found = inside(data, tag)
    if found is None:
        return default
    try:
        value = float(found)
    except ValueError:
        return default
    return value if -_MOST_NUMBER < value < _MOST_NUMBER else default


def whole(data: str, tag: str, default: int = 0) -> int:
    """The first element's number, as a whole one that fits every database."""
    value = int(number(data, tag, default))
    return value if -(1 << 62) < value < 1 << 62 else default


def flag(data: str, tag: str) -> bool:
    """BOINC's three ways to say yes or no: <tag/>, <tag>1</tag>, <tag>0</tag>."""
    return f"<{tag}/>" in data or number(data, tag) != 0


def blocks(data: str, tag: str) -> Iterator[str]:
    """What stands inside each element of this name, in order."""
    begin = data.find(f"<{tag}>")
    while begin >= 0:
        begin += len(tag) + 2
        end = data.find(f"</{tag}>", begin)
        if end < 0:
            return
        yield data[begin:end]
        begin = data.find(f"<{tag}>", end)


def unescape(value: str) -> str:
    """Undo the client's escapes. It writes a byte above 127 as &#NNN;, so a run of those is UTF-8."""
    if "&" not in value:
        return value
    raw = _REFERENCE.sub(_referred, value)
    if not any("\x80" <= c <= "\xff" for c in raw):
        return raw
    try:
        return raw.encode("latin-1").decode()
    except ValueError:
        return raw


def _referred(match: re.Match[str]) -> str:
    word = match[1]
    if word[0] != "#":
        return _ENTITIES[word]
    code = int(word[2:], 16) if word[1] == "x" else int(word[1:])
    return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"


# --- writing ------------------------------------------------------------------------------------------------------


def escape(value: str) -> str:
    """Text as the client understands it, without characters that no XML may hold."""
    value = _NOT_XML.sub("", value)
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def element(tag: str, value: object) -> str:
    """One element on a line of its own. Numbers never in the notation with an exponent, which old readers do not know."""
    if isinstance(value, bool):
        return f"<{tag}>{int(value)}</{tag}>\n"
    if isinstance(value, float):
        return f"<{tag}>{value:.6f}</{tag}>\n"
    return f"<{tag}>{escape(str(value))}</{tag}>\n"


# --- documents that people write ----------------------------------------------------------------------------------


class Element(Struct):
    """An element of a document: attributes are ignored, as BOINC does."""

    tag: str
    text: str
    children: list["Element"]

    def find(self, tag: str) -> "Element | None":
        """The first child of this name."""
        return next((child for child in self.children if child.tag == tag), None)

    def all(self, tag: str) -> list["Element"]:
        """The children of this name."""
        return [child for child in self.children if child.tag == tag]

    def value(self, tag: str, default: str = "") -> str:
        """The stripped text of the first child of this name."""
        child = self.find(tag)
        return default if child is None else child.text.strip()

    def flag(self, tag: str) -> bool:
        """Whether the child is there and not 0."""
        child = self.find(tag)
        return child is not None and child.text.strip() != "0"


class _Builder:
    def __init__(self) -> None:
        self.top = Element("", "", [])
        self.open = [self.top]
        self.texts: list[list[str]] = [[]]
        self.count = 0

    def start(self, tag: str, _attributes: object) -> None:
        self.count += 1
        if len(self.open) > MOST_DEPTH or self.count > MOST_ELEMENTS:
            raise BadDocument(f"more than {MOST_DEPTH} elements deep, or more than {MOST_ELEMENTS} of them")
        self.open.append(Element(tag, "", []))
        self.texts.append([])

    def end(self, _tag: str) -> None:
        done = self.open.pop()
        done.text = "".join(self.texts.pop())
        self.open[-1].children.append(done)

    def characters(self, data: str) -> None:
        self.texts[-1].append(data)

    def refuse(self, *_: object) -> None:
        raise BadDocument("a document type or entity declaration; write the text itself")


def read_document(data: bytes, most_bytes: int = 8 << 20) -> Element:
    """Read a well-formed document and return its outermost element. Raises BadDocument. Several elements at the top, as
    BOINC's templates have, are given as children of one without a name."""
    if len(data) > most_bytes:
        raise BadDocument(f"{len(data)} bytes; at most {most_bytes} are read")
    body = re.sub(rb"^\s*<\?xml[^>]*\?>", b"", data, count=1)
    builder = _Builder()
    parser = expat.ParserCreate(encoding="utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.characters
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.EntityDeclHandler = builder.refuse
    try:
        parser.Parse(b"<document>" + body + b"</document>", True)
    except expat.ExpatError as error:
        raise BadDocument(f"not well-formed XML: {error}") from error
    whole_document = builder.top.children[0]
    if len(whole_document.children) == 1:
        return whole_document.children[0]
    return Element("", whole_document.text, whole_document.children)
