"""Which results tars are results: one canonical form, written by agents and insisted on by sites.

The canonical form holds regular files and directories only, under safe relative names, sorted, each directory before
what is in it, owner 0, time 0, mode 0644 or 0755, plain ustar headers with one extended header only where a name or
size needs it, and exactly two zero blocks at the end. Equal content therefore has equal bytes, whichever engine, host
or time it came from. `normalise` makes it from what a container engine copies out; `verify` accepts nothing else, from
anybody.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from msgspec import Struct

from distributio.wire.tar_blocks import (
    BLOCK,
    DIRECTORY,
    FILE,
    GNU_LINK,
    GNU_NAME,
    HARD_LINK,
    MAX_NAME_BYTES,
    PAX,
    PAX_GLOBAL,
    ZEROS,
    BadResults,
    ancestors,
    checksum,
    header,
    name_fault,
    number,
    pax_fields,
    read_exactly,
)

CHUNK = 1 << 20
MAX_REPORTED = 100  # dropped members named in a summary; the rest are only counted
_PAX_MOST = 16_384  # what an engine may say of one member in an extended header
_KINDS = {b"2": "a symbolic link", b"3": "a character device", b"4": "a block device", b"6": "a named pipe"}


class Bounds(Struct, frozen=True, kw_only=True):
    """How much one results tar may hold."""

    members: int = 100_000
    content_bytes: int = 8 << 30


class Member(Struct, frozen=True):
    """A file or directory in a results tar. `offset` is where a file's bytes begin; a directory's name ends in /."""

    name: str
    size_bytes: int
    offset: int


class Summary(Struct, frozen=True, kw_only=True):
    """What a results tar holds, its own size and digest, and what was left out of it."""

    files: int
    content_bytes: int
    size_bytes: int
    digest: str  # "sha256:..." of the whole tar
    members: list[Member]
    dropped: list[str] = []  # sentences, at most MAX_REPORTED
    dropped_count: int = 0


class _Entry(Struct, frozen=True):
    """A member as an engine wrote it: raw name and link target, and where its content begins."""

    kind: bytes
    name: bytes
    link: bytes
    size: int
    offset: int


# --- reading what an engine wrote ---------------------------------------------------------------------------------


def _entries(source: BinaryIO) -> Iterator[_Entry]:
    """The members of an engine's tar, with long names of both styles resolved. The source can be sought in."""
    extended: dict[bytes, bytes] = {}
    while True:
        block = source.read(BLOCK)
        if not block or block == ZEROS:
            return
        if len(block) < BLOCK or number(block[148:156], "checksum") != checksum(block):
            raise BadResults("the engine's tar ends early or has a damaged header")
        kind = block[156:157]
        size = number(block[124:136], "size")
        if kind in (PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK):
            if size > _PAX_MOST:
                raise BadResults(f"an extended header of {size} bytes; {_PAX_MOST} are allowed")
            content = read_exactly(source, size + -size % BLOCK)[:size]
            if kind == PAX:
                extended |= pax_fields(content)
            elif kind != PAX_GLOBAL:
                extended[b"path" if kind == GNU_NAME else b"linkpath"] = content.rstrip(b"\0")
            continue
        name = block[:100].split(b"\0")[0]
        if block[257:263] == b"ustar\0" and block[345:500].strip(b"\0"):
            name = block[345:500].split(b"\0")[0] + b"/" + name
        if b"size" in extended:
            if not extended[b"size"].isdigit():
                raise BadResults("an extended header's size is not a number")
            size = int(extended[b"size"])
        if kind == b"\0":
            kind = FILE
        offset = source.tell()
        held = size if kind == FILE else 0  # only regular files carry content
        yield _Entry(
            kind, extended.get(b"path", name), extended.get(b"linkpath", block[157:257].split(b"\0")[0]), held, offset
        )
        extended = {}
        source.seek(offset + held + -held % BLOCK)


class _Selection:
    """What of an engine's tar goes into the results, decided member by member, and what does not, with reasons."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.files: dict[str, _Entry] = {}
        self.directories: set[str] = set()
        self.content_bytes = 0
        self.dropped: list[str] = []
        self.dropped_count = 0
        self.prefix: bytes | None = None

    def drop(self, name: str, why: str) -> None:
        """Leave a member out, and say so."""
        self.dropped_count += 1
        if len(self.dropped) < MAX_REPORTED:
            self.dropped.append(f"{name[:200]!r} {why}")

    def inside(self, raw: bytes) -> str:
        """A member's name below the results folder. Engines put the folder's own name, or a slash, before it."""
        if self.prefix is None:
            head, slash, _ = raw.partition(b"/")
            self.prefix = head + slash
        return raw.removeprefix(self.prefix).decode("utf-8", "surrogateescape")

    def take(self, entry: _Entry) -> None:
        """Accept a member, or drop it."""
        name = self.inside(entry.name)
        if not name.strip("/"):
            return
        try:
            fault = name_fault(name)
        except UnicodeEncodeError:
            fault = "is not UTF-8"
        bare = name.removesuffix("/")
        if fault:
            self.drop(name, fault)
        elif bare in self.files or any(a[:-1] in self.files for a in ancestors(bare)):
            self.drop(name, "is there twice, or lies below a file")
        elif entry.kind == DIRECTORY:
            self.add_directories([*ancestors(bare), bare + "/"])
        elif entry.kind == FILE:
            self.add_file(bare, entry)
        elif entry.kind == HARD_LINK:
            target = self.files.get(self.inside(entry.link))
            if target is None:
                self.drop(name, "is a hard link to something that is not in the results")
            else:
                self.add_file(bare, target)
        else:
            self.drop(name, "is " + _KINDS.get(entry.kind, "neither a file nor a folder"))

    def add_directories(self, names: list[str]) -> None:
        """Note directories; there may be no more members than allowed."""
        self.directories.update(names)
        if len(self.directories) + len(self.files) > self.bounds.members:
            raise BadResults(f"more than {self.bounds.members} files and folders in the results; pack them into fewer")

    def add_file(self, name: str, entry: _Entry) -> None:
        """Note a file and the directories it lies in; there may be no more bytes than allowed."""
        if name + "/" in self.directories:
            self.drop(name, "is there twice, as a file and as a folder")
            return
        self.files[name] = entry
        self.add_directories(ancestors(name))
        self.content_bytes += entry.size
        if self.content_bytes > self.bounds.content_bytes:
            raise BadResults(f"the results hold more than {self.bounds.content_bytes} bytes; raise the disk limit")


# --- writing ------------------------------------------------------------------------------------------------------


class _Writer:
    """Writes canonical members and keeps their positions and the digest."""

    def __init__(self, target: BinaryIO) -> None:
        self.target = target
        self.digest = hashlib.sha256()
        self.position = 0
        self.members: list[Member] = []

    def put(self, content: bytes) -> None:
        """Write bytes."""
        self.target.write(content)
        self.digest.update(content)
        self.position += len(content)

    def add(self, name: str, size: int, read: Callable[[int], bytes]) -> None:
        """Write one member; `read` gives its content, so many bytes at a time."""
        self.put(header(name, size))
        self.members.append(Member(name, size, self.position))
        left = size
        while left:
            part = read(min(left, CHUNK))
            if not part:
                raise BadResults(f"the content of {name!r} ends early")
            self.put(part)
            left -= len(part)
        self.put(bytes(-size % BLOCK))

    def finish(self, dropped: list[str], dropped_count: int) -> Summary:
        """Write the end and sum up."""
        self.put(ZEROS * 2)
        return Summary(
            files=sum(not m.name.endswith("/") for m in self.members),
            content_bytes=sum(m.size_bytes for m in self.members),
            size_bytes=self.position,
            digest="sha256:" + self.digest.hexdigest(),
            members=self.members,
            dropped=dropped,
            dropped_count=dropped_count,
        )


def normalise(source: BinaryIO, target: BinaryIO, bounds: Bounds) -> Summary:
    """Write the canonical form of what an engine copied out of a results folder. `source` is read twice by seeking."""
    selection = _Selection(bounds)
    for entry in _entries(source):
        selection.take(entry)
    writer = _Writer(target)
    for name in sorted([*selection.files, *selection.directories], key=str.encode):
        file = selection.files.get(name)
        if file is not None:
            source.seek(file.offset)
        writer.add(name, file.size if file is not None else 0, source.read)
    return writer.finish(selection.dropped, selection.dropped_count)


# --- verifying ----------------------------------------------------------------------------------------------------


class _Stream:
    """Reads bytes in order and keeps their digest."""

    def __init__(self, source: BinaryIO) -> None:
        self.source = source
        self.digest = hashlib.sha256()
        self.position = 0

    def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        content = read_exactly(self.source, count)
        self.digest.update(content)
        self.position += count
        return content

    def skip(self, count: int) -> None:
        """Pass over content, and over its filling, which must be zeros."""
        filling = -count % BLOCK
        while count:
            part = min(count, CHUNK)
            self.take(part)
            count -= part
        if any(self.take(filling)):
            raise BadResults("the filling after a file is not zeros")


def _next_header(stream: _Stream) -> tuple[str, int] | None:
    """The next member's name and size, or None at the end. Anything that is not written as we write it is refused."""
    seen = block = stream.take(BLOCK)
    if block == ZEROS:
        if stream.take(BLOCK) != ZEROS or stream.source.read(1):
            raise BadResults("something follows the end")
        return None
    fields: dict[bytes, bytes] = {}
    if block[156:157] == PAX:
        length = number(block[124:136], "size")
        if not 0 < length <= MAX_NAME_BYTES + 64:
            raise BadResults(f"an extended header of {length} bytes")
        content = stream.take(length + -length % BLOCK)
        fields = pax_fields(content[:length])
        block = stream.take(BLOCK)
        seen += content + block
    try:
        name = fields.get(b"path", block[:100].rstrip(b"\0")).decode()
    except UnicodeDecodeError:
        raise BadResults("a name is not UTF-8") from None
    said = fields.get(b"size", b"")
    if said and not (said.isdigit() and len(said) <= 16):
        raise BadResults(f"the size of {name[:200]!r} is not a number")
    size = int(said) if said else number(block[124:136], "size")
    fault = name_fault(name)
    if fault:
        raise BadResults(f"the name {name[:200]!r} {fault}")
    if name.endswith("/") and size:
        raise BadResults(f"the folder {name[:200]!r} has a size")
    if header(name, size) != seen:
        raise BadResults(f"the header of {name[:200]!r} is not in the canonical form (is it a link, a device?)")
    return name, size


def verify(source: BinaryIO, bounds: Bounds) -> Summary:
    """Check bytes from a stranger, reading them once: they are exactly a results tar in the canonical form."""
    stream = _Stream(source)
    members: list[Member] = []
    known: set[str] = set()
    previous = b""
    content_bytes = 0
    while (found := _next_header(stream)) is not None:
        name, size = found
        raw = name.encode()
        if raw <= previous:
            raise BadResults(f"{name!r} is out of order, or there twice")
        if any(parent not in known for parent in ancestors(name)) or name.removesuffix("/") in known:
            raise BadResults(f"{name!r} comes before its folder, or is both a file and a folder")
        content_bytes += size
        if len(members) >= bounds.members or content_bytes > bounds.content_bytes:
            raise BadResults(f"more than {bounds.members} members or {bounds.content_bytes} bytes")
        known.add(name)
        previous = raw
        members.append(Member(name, size, stream.position))
        stream.skip(size)
    return Summary(
        files=sum(not m.name.endswith("/") for m in members),
        content_bytes=content_bytes,
        size_bytes=stream.position,
        digest="sha256:" + stream.digest.hexdigest(),
        members=members,
    )
