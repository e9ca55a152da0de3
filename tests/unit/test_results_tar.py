"""Results tars: what we write we accept, equal content has equal bytes, and nothing hostile gets through."""

import hashlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributio.wire.results_tar import Bounds, Summary, normalise, verify
from distributio.wire.tar_blocks import BadResults, header

BOUNDS = Bounds(members=200, content_bytes=1 << 20)
END = bytes(1024)


def engine_tar(
    *members: tuple[str, bytes] | tarfile.TarInfo, prefix: str = "results/", form: int = tarfile.PAX_FORMAT
) -> io.BytesIO:
    """A tar as an engine writes it: the folder itself first, then its members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        root = tarfile.TarInfo(prefix)
        root.type = tarfile.DIRTYPE
        tar.addfile(root)
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(prefix + member[0])
            info.size, info.mtime, info.mode, info.uid = len(member[1]), 1_700_000_000, 0o4777, 1000
            tar.addfile(info, io.BytesIO(member[1]))
    out.seek(0)
    return out


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """A member that is not a regular file."""
    info = tarfile.TarInfo("results/" + name)
    info.type, info.linkname = kind, link
    return info


def normalised(source: io.BytesIO, bounds: Bounds = BOUNDS) -> tuple[bytes, Summary]:
    """The canonical bytes, and what was said of them."""
    out = io.BytesIO()
    summary = normalise(source, out, bounds)
    return out.getvalue(), summary


def contents(tar: bytes) -> dict[str, bytes]:
    """What an independent reader finds in a tar."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        found = {}
        for member in opened.getmembers():
            file = opened.extractfile(member)
            found[member.name] = file.read() if file else b""
        return found


PART = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\"), min_size=1, max_size=90)
TREE = st.dictionaries(st.lists(PART, min_size=1, max_size=4).map("/".join), st.binary(max_size=1500), max_size=12)


@settings(max_examples=120, deadline=None)
@given(TREE, st.sampled_from(["results/", "/"]), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_what_we_write_we_accept(tree: dict[str, bytes], prefix: str, form: int) -> None:
    tar, written = normalised(engine_tar(*tree.items(), prefix=prefix, form=form))
    read = verify(io.BytesIO(tar), BOUNDS)
    assert read.members == written.members
    assert read.digest == written.digest == "sha256:" + hashlib.sha256(tar).hexdigest()
    assert read.size_bytes == written.size_bytes == len(tar)
    for member in read.members:
        if not member.name.endswith("/"):
            assert tar[member.offset : member.offset + member.size_bytes] == tree[member.name]
    assert {n: c for n, c in contents(tar).items() if c} == {
        m.name: tree[m.name] for m in read.members if m.size_bytes and not m.name.endswith("/")
    }


@settings(max_examples=40, deadline=None)
@given(TREE, st.randoms(use_true_random=False))
def test_order_engine_and_times_do_not_matter(tree: dict[str, bytes], random: object) -> None:
    items = list(tree.items())
    one, _ = normalised(engine_tar(*sorted(items), prefix="/"))
    other, _ = normalised(engine_tar(*sorted(items), prefix="results/", form=tarfile.GNU_FORMAT))
    assert one == other


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_byte_is_seen_or_harmless(data: st.DataObject) -> None:
    tar, _ = normalised(engine_tar(("a/b.txt", b"hello"), ("é", b"1"), ("z", b"")))
    position = data.draw(st.integers(0, len(tar) - 1))
    changed = bytearray(tar)
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        summary = verify(io.BytesIO(bytes(changed)), BOUNDS)
    except BadResults:
        return
    assert summary.digest == "sha256:" + hashlib.sha256(changed).hexdigest()
    assert len(summary.members) == 4


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused(junk: bytes) -> None:
    for attempt in (junk, junk + END, tarred_junk(junk)):
        try:
            verify(io.BytesIO(attempt), BOUNDS)
        except BadResults:
            continue
        assert attempt == END


def tarred_junk(junk: bytes) -> bytes:
    """Junk under a header whose checksum is right."""
    block = junk[:512].ljust(512, b"\0")
    checksum = sum(block) - sum(block[148:156]) + 256
    return block[:148] + b"%06o\0 " % checksum + block[156:] + junk + bytes(-len(junk) % 512) + END


def test_podman_and_docker_name_hard_links_differently() -> None:
    for prefix, link in (("results/", "results/a"), ("/", "a"), ("/", "/a")):
        second = tarfile.TarInfo(prefix + "b")
        second.type, second.linkname = tarfile.LNKTYPE, link
        tar, summary = normalised(engine_tar(("a", b"data"), second, prefix=prefix))
        assert contents(tar) == {"a": b"data", "b": b"data"}
        assert summary.files == 2
        assert not summary.dropped


def test_a_folder_called_results_in_the_results_keeps_its_links_apart() -> None:
    link = special("x", tarfile.LNKTYPE, "results/results/a")
    tar, _ = normalised(engine_tar(("results/a", b"inner"), ("a", b"outer"), link))
    assert contents(tar)["x"] == b"inner"


def test_hard_links_cannot_multiply_bytes_beyond_the_bound() -> None:
    links = [special(f"l{n}", tarfile.LNKTYPE, "results/big") for n in range(100)]
    with pytest.raises(BadResults, match="more than"):
        normalised(engine_tar(("big", bytes(1 << 16)), *links))


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (special("link", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
        (special("dev", tarfile.CHRTYPE), "character device"),
        (special("blk", tarfile.BLKTYPE), "block device"),
        (special("pipe", tarfile.FIFOTYPE), "named pipe"),
        (special("hard", tarfile.LNKTYPE, "/etc/passwd"), "hard link"),
        (special("hard", tarfile.LNKTYPE, "results/../../etc/passwd"), "hard link"),
        (("../up", b"x"), "'..' part"),
        (("/abs", b"x"), "absolute"),
        (("a/../../b", b"x"), "'..' part"),
        (("bell\a", b"x"), "control"),
        (("new\nline", b"x"), "control"),
        (("back\\slash", b"x"), "backslash"),
        (("C:/windows", b"x"), "drive"),
        (("evil\u202etxt.exe", b"x"), "direction"),
        (("n" * 300, b"x"), "longer"),
        (("/".join("d" * 40), b"x"), "deep"),
        (("\udcff\udcfe", b"x"), "UTF-8"),
    ],
)
def test_what_has_no_place_is_dropped_and_said(member: tuple[str, bytes] | tarfile.TarInfo, why: str) -> None:
    tar, summary = normalised(engine_tar(("good", b"kept"), member, form=tarfile.GNU_FORMAT))
    assert contents(tar) == {"good": b"kept"}
    assert summary.dropped_count == 1
    assert why in summary.dropped[0]
    assert verify(io.BytesIO(tar), BOUNDS).files == 1


def test_a_symlink_cannot_be_written_through() -> None:
    tar, summary = normalised(engine_tar(special("d", tarfile.SYMTYPE, "/etc"), ("d/passwd", b"x"), ("e", b"y")))
    assert contents(tar) == {"d": b"", "d/passwd": b"x", "e": b"y"}
    assert summary.dropped_count == 1


def test_duplicates_and_files_that_are_folders_keep_the_first() -> None:
    tar, summary = normalised(engine_tar(("a", b"1"), ("a", b"2"), ("a/b", b"3"), ("d/x", b"4"), ("d", b"5")))
    assert contents(tar) == {"a": b"1", "d": b"", "d/x": b"4"}
    assert summary.dropped_count == 3


def test_modes_owners_and_times_are_gone() -> None:
    tar, _ = normalised(engine_tar(("tool", b"#!")))
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        member = opened.getmember("tool")
    assert (member.mode, member.uid, member.gid, member.mtime, member.uname) == (0o644, 0, 0, 0, "")


def test_an_empty_folder_is_kept_and_nothing_is_two_blocks() -> None:
    tar, summary = normalised(engine_tar(special("empty/", tarfile.DIRTYPE)))
    assert contents(tar) == {"empty": b""}
    assert (summary.files, normalised(engine_tar())[0]) == (0, END)


def test_an_engine_tar_that_ends_early_is_refused() -> None:
    whole = engine_tar(("a", bytes(5000))).getvalue()
    with pytest.raises(BadResults, match="early"):
        normalised(io.BytesIO(whole[:3000]))


def test_too_many_members_are_refused() -> None:
    many = [(f"f{n}", b"") for n in range(300)]
    with pytest.raises(BadResults, match="files and folders"):
        normalised(engine_tar(*many))
    tar, _ = normalised(engine_tar(*many), Bounds(members=1000))
    with pytest.raises(BadResults, match="more than 200 members"):
        verify(io.BytesIO(tar), BOUNDS)


def file(name: str, content: bytes = b"") -> bytes:
    """A member in the canonical form, whatever its name."""
    return header(name, len(content)) + content + bytes(-len(content) % 512)


def with_field(block: bytes, start: int, value: bytes) -> bytes:
    """A header with one field changed and the checksum made right again."""
    changed = block[:start] + value + block[start + len(value) :]
    checksum = sum(changed) - sum(changed[148:156]) + 256
    return changed[:148] + b"%06o\0 " % checksum + changed[156:]


ATTACKS = {
    "parent": (file("../x") + END, "'..'"),
    "absolute": (file("/etc/passwd") + END, "absolute"),
    "symlink": (with_field(file("a"), 156, b"2" + b"/etc") + END, "canonical"),
    "symlink then write": (with_field(file("a/"), 156, b"2" + b"/etc") + file("a/b") + END, "canonical"),
    "hard link": (file("a") + with_field(file("b"), 156, b"1" + b"a") + END, "canonical"),
    "device": (with_field(file("a"), 156, b"3") + END, "canonical"),
    "fifo": (with_field(file("a"), 156, b"6") + END, "canonical"),
    "setuid": (with_field(file("a"), 100, b"0004755") + END, "canonical"),
    "owner": (with_field(file("a"), 108, b"0001000") + END, "canonical"),
    "time": (with_field(file("a"), 136, b"00000000001") + END, "canonical"),
    "duplicate": (file("a") + file("a") + END, "there twice"),
    "unsorted": (file("b") + file("a") + END, "out of order"),
    "file and folder": (file("a") + file("a/") + END, "both a file and a folder"),
    "no folder": (file("a/b") + END, "before its folder"),
    "control": (file("a\x1b[2J") + END, "control"),
    "not utf-8": (with_field(file("a"), 0, b"\xff\xfe") + END, "UTF-8"),
    "truncated header": (file("a")[:200], "ends in the middle"),
    "truncated content": (file("a", bytes(2000))[:1500], "ends in the middle"),
    "no end": (file("a"), "ends in the middle"),
    "half an end": (file("a") + bytes(512), "ends in the middle"),
    "more after the end": (file("a") + END + b"x", "follows the end"),
    "second archive": (file("a") + END + file("b") + END, "follows the end"),
    "filling": (file("a", b"12345")[:-1] + b"!" + END, "filling"),
    "negative size": (with_field(file("a"), 124, b"-0000000001") + END, "not a number"),
    "negative base-256": (with_field(file("a"), 124, b"\xff" * 12) + END, "not a number"),
    "base-256": (with_field(file("a"), 124, b"\x80" + bytes(10) + b"\0") + END, "canonical"),
    "huge": (with_field(file("a"), 124, b"77777777777") + END, "more than"),
    "huge by pax": (header("a", 1 << 50) + END, "more than"),
    "folder with size": (with_field(file("a/"), 124, b"00000001000") + END, "has a size"),
    "long pax": (with_field(header("é", 0)[:512], 124, b"00007000000") + END, "extended header of"),
    "empty pax": (with_field(header("é", 0)[:512], 124, b"00000000000") + END, "extended header of"),
    "needless pax": (header("é", 0)[:512] + b"8 path=a\n".ljust(512, b"\0") + file("a") + END, "extended"),
    "pax lying": (header("é", 0)[:512] + b"99 path=a\n".ljust(512, b"\0") + file("a") + END, "malformed"),
    "bad checksum": (file("a")[:148] + b"000000\0 " + file("a")[156:] + END, "canonical"),
    "gnu long name": (with_field(file("a"), 156, b"L") + END, "canonical"),
    "global pax": (with_field(file("a"), 156, b"g") + END, "canonical"),
    "nothing": (b"", "ends in the middle"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_site_refuses(attack: str) -> None:
    tar, why = ATTACKS[attack]
    with pytest.raises(BadResults, match=why.replace(".", r"\.")):
        verify(io.BytesIO(tar), BOUNDS)


def test_huge_sizes_get_an_extended_header_that_others_read() -> None:
    info = tarfile.TarInfo.frombuf(header("big", 9 << 30)[-512:], "utf-8", "strict")
    assert info.size == 0
    assert b"size=9663676416\n" in header("big", 9 << 30)


def test_the_bytes_never_change() -> None:
    tar, summary = normalised(engine_tar(("hello.txt", b"Hello BOINC"), ("d/é", b"x")))
    assert summary.digest == "sha256:" + hashlib.sha256(tar).hexdigest()
    assert summary.digest == "sha256:8b0fbdf36c159f5cbe547bfb521fc917381b281ef242cf0aaa7accb700d46f13"
