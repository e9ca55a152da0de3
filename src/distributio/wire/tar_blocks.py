"""How a results tar is spelled: safe names, header blocks, and the numbers and records in them."""

from typing import BinaryIO

BLOCK = 512
MAX_NAME_BYTES = 512
MAX_PART_BYTES = 255
MAX_DEPTH = 32
ZEROS = bytes(BLOCK)

FILE, DIRECTORY, HARD_LINK, PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK = b"0", b"5", b"1", b"x", b"g", b"L", b"K"
_FIELD_NAME_BYTES = 100
_FIELD_SIZE_MOST = 0o77777777777
_PAX_NAME = b"././@PaxHeader"
# Line and paragraph separators and the marks that turn the direction of text: they make a name look like another.
_DECEIVING = frozenset("\u2028\u2029\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class BadResults(ValueError):
    """These bytes are not results in the canonical form, or are more than allowed; the message says where and why."""


# --- names --------------------------------------------------------------------------------------------------------


def name_fault(name: str) -> str:
    """What is wrong with a relative path as the name of a result, or nothing."""
    parts = name.removesuffix("/").split("/")
    if name.startswith("/"):
        return "is absolute"
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty, '.' or '..' part"
    if any(ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F or c == "\\" or c in _DECEIVING for c in name):
        return "has a control character, a direction mark or a backslash"
    if len(parts[0]) >= 2 and parts[0][1] == ":" and parts[0][0].isascii() and parts[0][0].isalpha():
        return "begins like a drive letter"
    if len(parts) > MAX_DEPTH:
        return f"is more than {MAX_DEPTH} folders deep"
    if len(name.encode()) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"is longer than {MAX_NAME_BYTES} bytes, or a part of it than {MAX_PART_BYTES}"
    return ""


def ancestors(name: str) -> list[str]:
    """The directories a name lies in, outermost first, each ending in a slash."""
    parts = name.removesuffix("/").split("/")[:-1]
    return ["/".join(parts[: i + 1]) + "/" for i in range(len(parts))]


# --- headers ------------------------------------------------------------------------------------------------------


def checksum(block: bytes) -> int:
    """A header's checksum: the sum of its bytes, with its own field read as blanks."""
    return sum(block) - sum(block[148:156]) + 8 * 0x20


def _plain_header(name: bytes, size: int, kind: bytes) -> bytes:
    """One ustar header block. A name or size that does not fit is cut; an extended header before it says it whole."""
    mode = b"0000755" if kind == DIRECTORY else b"0000644"
    fitting = size if size <= _FIELD_SIZE_MOST else 0
    block = b"".join(
        (
            name[:_FIELD_NAME_BYTES].ljust(_FIELD_NAME_BYTES, b"\0"),
            mode + b"\0" + b"0000000\0" * 2,
            b"%011o\0" % fitting + b"%011o\0" % 0,
            b" " * 8 + kind + bytes(100),
            b"ustar\x0000" + bytes(64) + b"0000000\0" * 2,
            bytes(155 + 12),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _pax_record(key: bytes, value: bytes) -> bytes:
    """One `length key=value` line of an extended header; the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _padded(content: bytes) -> bytes:
    """Content filled up with zeros to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def header(name: str, size: int) -> bytes:
    """The header blocks of a member in the canonical form. A name that ends in a slash is a directory's."""
    raw = name.encode()
    records = b""
    if len(raw) > _FIELD_NAME_BYTES or not raw.isascii():
        records += _pax_record(b"path", raw)
    if size > _FIELD_SIZE_MOST:
        records += _pax_record(b"size", b"%d" % size)
    extended = _plain_header(_PAX_NAME, len(records), PAX) + _padded(records) if records else b""
    return extended + _plain_header(raw, size, DIRECTORY if name.endswith("/") else FILE)


def number(field: bytes, what: str) -> int:
    """A number field of a header: octal digits, or the base-256 form engines use for what is larger."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise BadResults(f"a header's {what} is not a number")
    return int(digits, 8)


def pax_fields(content: bytes) -> dict[bytes, bytes]:
    """The records of an extended header."""
    fields = {}
    rest = content
    while rest:
        length, blank, _ = rest.partition(b" ")
        size = int(length) if length.isdigit() and len(length) <= 6 else 0
        record = rest[len(length) + 1 : size]
        key, equals, value = record.partition(b"=")
        if not (blank and equals and size <= len(rest) and record.endswith(b"\n")):
            raise BadResults("an extended header is malformed")
        fields[key] = value[:-1]
        rest = rest[size:]
    return fields


def read_exactly(source: BinaryIO, count: int) -> bytes:
    """So many bytes, or the complaint that the tar ends early."""
    parts = []
    while count:
        part = source.read(count)
        if not part:
            raise BadResults("the tar ends in the middle of a member")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
