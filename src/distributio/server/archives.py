"""What is in a tar of an image, as docker, podman and builders write them.

Archives come from strangers, so this reader is stricter than Python's own: it never extracts, bounds what it holds in
memory, and refuses what no image archive needs. An archive is first spooled to a file without a name and then read by
offset.
"""

import contextlib
import posixpath
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from distributio.server.intake import Bounds, ImageError, inflate

_BLOCK = 512
_CHUNK = 1 << 20
_EXTENSION_BYTES = 1 << 20  # extended headers and long names
_NAME_BYTES = 4096
_FILE, _FOLDER, _HARD_LINK, _SYMBOLIC_LINK = b"0", b"5", b"1", b"2"
_WITHOUT_BYTES = b"123456"
_ODD = {b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}
_PACKED = {b"\xfd7zXZ\x00": "xz -d", b"BZh": "bzip2 -d", b"\x28\xb5\x2f\xfd": "zstd -d"}


class Member(Struct, frozen=True):
    """A file in the archive, or a link to one."""

    name: str
    offset: int = 0
    size: int = 0
    target: str = ""  # of a link: another member's name


def refused(why: str, advice: str = "Make it with docker save or podman save.") -> ImageError:
    """The error for an archive that is not accepted."""
    return ImageError("image-refused", f"The archive is refused: {why}. {advice}")


@contextlib.contextmanager
def spool(chunks: Iterable[bytes], scratch: Path, bounds: Bounds) -> Iterator[BinaryIO]:
    """The archive as a file that vanishes, gunzipped if it came packed."""
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as file:
        size = 0
        try:
            for chunk in _unpacked(iter(chunks)):
                size += len(chunk)
                if size > bounds.archive_bytes:
                    raise refused(f"it is larger than {bounds.archive_bytes} bytes, the most this site takes")
                file.write(chunk)
        except (zlib.error, EOFError) as problem:
            raise refused(f"its gzip packing is damaged ({problem})") from problem
        if not size:
            raise refused("it is empty", "If it came through a pipe, see what the program before it complained of.")
        yield file


def _unpacked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 6:
            break
    for magic, command in _PACKED.items():
        if head.startswith(magic):
            raise refused(f"it is packed in a way that is not read here; unpack it first ({command})")
    whole = _after(head, chunks)
    return inflate(whole) if head.startswith(b"\x1f\x8b") else whole


def _after(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks


class Archive:
    """The files of a tar by name."""

    def __init__(self, file: BinaryIO, bounds: Bounds) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        self._members: dict[str, Member] = {}
        for count, member in enumerate(self._walk()):
            if count >= bounds.archive_members:
                raise refused(f"it has more than {bounds.archive_members} files")
            if member.name in self._members:
                raise refused(f"it has {member.name!r} twice, so that it means different things to different readers")
            self._members[member.name] = member

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def find(self, name: str) -> Member:
        """The file of that name; links are followed, inside the archive only."""
        member = self._members.get(_clean(name))
        for _ in range(8):
            if member is None:
                raise refused(f"{name!r} is missing from it. If it was copied, it may have been cut off")
            if not member.target:
                return member
            member = self._members.get(member.target)
        raise refused(f"{name!r} is a link that leads in circles")

    def read(self, name: str, most: int) -> bytes:
        """All of something small."""
        member = self.find(name)
        if member.size > most:
            raise refused(f"{name!r} is {member.size} bytes; more than {most} is not accepted there")
        return b"".join(self.stream(member))

    def stream(self, member: Member) -> Iterator[bytes]:
        """A file's bytes."""
        position, end = member.offset, member.offset + member.size
        while position < end:
            self._file.seek(position)
            data = self._file.read(min(_CHUNK, end - position))
            position += len(data)
            yield data

    def _walk(self) -> Iterator[Member]:
        position = 0
        extra: dict[str, str] = {}
        while True:
            header = self._at(position, _BLOCK)
            position += _BLOCK
            if not header.strip(b"\0"):
                return
            if _number(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
                raise refused("it is damaged, or not a tar at all: a header's checksum is wrong")
            kind = header[156:157].replace(b"\0", b"0").replace(b"7", b"0")
            size = _decimal(extra["size"]) if "size" in extra else _number(header[124:136])
            if kind in _WITHOUT_BYTES:
                size = 0  # whatever the header says: some writers give a link the size of its target
            if position + size > self._size:
                raise refused("it ends too early: it was cut off on the way")
            if kind in b"xgLK":
                extra |= self._extension(kind, position, size)
            else:
                yield from self._member(header, kind, position, size, extra)
                extra = {}
            position += -(-size // _BLOCK) * _BLOCK

    def _at(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        data = self._file.read(size)
        if len(data) < size:
            raise refused("it ends too early: it was cut off on the way")
        return data

    def _extension(self, kind: bytes, position: int, size: int) -> dict[str, str]:
        if size > _EXTENSION_BYTES:
            raise refused(f"it has a header of {size} bytes")
        data = self._at(position, size)
        if kind == b"L":
            return {"path": _text(data)}
        if kind == b"K":
            return {"linkpath": _text(data)}
        records = dict(_records(data))
        if any(key.startswith("GNU.sparse") for key in records):
            raise refused("it has a sparse file")
        known = {key: value for key, value in records.items() if key in ("path", "linkpath", "size")}
        if known and kind == b"g":
            raise refused("it gives the same name or size to all files")
        return known

    def _member(self, header: bytes, kind: bytes, position: int, size: int, extra: dict[str, str]) -> Iterator[Member]:
        name = extra.get("path") or _header_name(header)
        if kind in _ODD:
            raise refused(f"it has {_ODD[kind]} ({name!r})")
        if kind == _FOLDER:
            _clean(name)
            return
        if kind in (_HARD_LINK, _SYMBOLIC_LINK):
            target = extra.get("linkpath") or _text(header[157:257])
            # A symbolic link is read from its own folder, a hard link from the top.
            base = posixpath.dirname(_clean(name)) if kind == _SYMBOLIC_LINK else ""
            yield Member(_clean(name), target=_clean(posixpath.join(base, target), name))
            return
        if kind != _FILE:
            raise refused(f"it has something of the unknown kind {kind!r} ({name!r})")
        yield Member(_clean(name), position, size)


def _clean(name: str, link: str = "") -> str:
    """The name without detours. Refuses what leads out of the archive."""
    who = f"{link!r}, a link to {name!r}," if link else repr(name)
    if not name or len(name) > _NAME_BYTES or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise refused(f"it has a file with an unusable name ({who[:200]})")
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path == ".." or (not link and ".." in name.split("/")):
        raise refused(f"{who} leads out of it")
    return path


def _header_name(header: bytes) -> str:
    name, prefix = _text(header[0:100]), _text(header[345:500])
    is_posix = header[257:263] == b"ustar\0"  # GNU's own format keeps other things there
    return f"{prefix}/{name}" if prefix and is_posix else name


def _text(field: bytes) -> str:
    try:
        return field.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError as problem:
        raise refused("it has a name that is not UTF-8") from problem


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise refused("it is damaged, or not a tar at all: a header has no number where one belongs")
    return int(digits, 8)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise refused("an extended header has no number where one belongs")
    return int(text)


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        record = data[len(length) + 1 : size]
        if not space or not record.endswith(b"\n") or size > len(data):
            raise refused("an extended header is damaged")
        key, _, value = record[:-1].partition(b"=")
        yield _text(key), _text(value)
        data = data[size:]
