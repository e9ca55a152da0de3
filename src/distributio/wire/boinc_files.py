"""How a BOINC client brings a file: a header in XML, then raw bytes, and the three words it may be answered."""

from msgspec import Struct

from distributio.wire.boinc_xml import escape, inside, text, whole

MOST_HEADER_BYTES = 65_536
DONE, AGAIN, NEVER = 0, 1, -1  # a client that is told NEVER reports success all the same


class BadUpload(ValueError):
    """This is no upload; the message says what is wrong."""


class SizeQuery(Struct, frozen=True):
    """How much of a file does the site hold?"""

    name: str


class Upload(Struct, frozen=True, kw_only=True):
    """A file, or the rest of it from `offset` on; `data_at` is where in the body its bytes begin."""

    name: str
    size_bytes: int
    md5: str
    offset: int
    most_bytes: int
    data_at: int


def read_header(head: bytes) -> SizeQuery | Upload | None:
    """Read the beginning of a body; None: more of it is needed. Raises BadUpload."""
    begin = head.find(b"<data>")
    if begin < 0:
        if b"</get_file_size>" in head:
            return SizeQuery(text(head.decode("utf-8", "replace"), "get_file_size"))
        if len(head) > MOST_HEADER_BYTES:
            raise BadUpload(f"no <data> in the first {MOST_HEADER_BYTES} bytes")
        return None
    after = head.find(b"\n", begin)
    if after < 0:
        return None
    header = head[:begin].decode("utf-8", "replace")
    if "<file_upload>" not in header:
        raise BadUpload("neither <file_upload> nor <get_file_size>")
    info = inside(header, "file_info") or ""
    rest = header.partition("</file_info>")[2]
    upload = Upload(
        name=text(info, "name"),
        size_bytes=whole(rest, "nbytes", -1),
        md5=text(rest, "md5_cksum").lower(),
        offset=whole(rest, "offset"),
        most_bytes=whole(info, "max_nbytes"),
        data_at=after + 1,
    )
    if not is_safe_name(upload.name):
        raise BadUpload(f"{upload.name[:100]!r} is not the name of a file")
    if upload.size_bytes < 0 or not 0 <= upload.offset <= upload.size_bytes:
        raise BadUpload(f"{upload.offset} of {upload.size_bytes} bytes cannot be")
    return upload


def is_safe_name(name: str) -> bool:
    """Letters, digits, dots, dashes and underscores, and no way out of a folder."""
    return (
        0 < len(name) < 200
        and ".." not in name
        and name.isascii()
        and name.replace("_", "a").replace("-", "a").replace(".", "a").isalnum()
    )


def write_answer(status: int, message: str = "", size_bytes: int | None = None) -> bytes:
    """The answer, which comes with HTTP's 200 always."""
    parts = [f"<data_server_reply>\n    <status>{status}</status>\n"]
    if message:
        parts.append(f"    <message>{escape(' '.join(message.split())[:250])}</message>\n")
    if size_bytes is not None:
        parts.append(f"    <file_size>{size_bytes}</file_size>\n")
    parts.append("</data_server_reply>\n")
    return "".join(parts).encode()
