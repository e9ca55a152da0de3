"""Validators say yes to honest outputs, no to wrong ones, in words that name the place; and a hostile one harms nobody."""

import contextlib
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributio.validators import builtin, names, pictures
from distributio.validators.confine import Bounds
from distributio.validators.mutants import mutants
from distributio.validators.numbers import Tally, Tolerance
from distributio.validators.pictures import Picture
from distributio.validators.sandbox import NotLoaded, Sandbox, ValidatorTrouble
from distributio.validators.unpack import unpack
from distributio.validators.verdicts import Agreement, Output, Verdict
from distributio.validators.worker import Setup
from distributio.wire.results_tar import Bounds as TarBounds
from distributio.wire.tar_blocks import BadResults
from sites import results_tar

EXAMPLES = Path(__file__).parents[2] / "examples"


def folder(path: Path, files: dict[str, bytes | str]) -> Output:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Output(path)


@pytest.fixture
def agree(tmp_path: Path) -> Callable[..., Agreement]:
    def ask(spec: str, a: dict[str, bytes | str], b: dict[str, bytes | str]) -> Agreement:
        validator = builtin.of(names.choose(spec, {}))
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        one, other = folder(place / "a", a), folder(place / "b", b)
        said, back = validator.agree(one, other), validator.agree(other, one)
        assert said.agrees == back.agrees
        return said

    return ask


def npy(values: list[float], shape: str = "", dtype: str = "<f8", code: str = "d", **more: object) -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": (len(values),)} | more)
    if shape:
        header = header.replace(repr((len(values),)), shape)
    raw = header.encode() + b"\n"
    order = dtype[0] if dtype[0] in "<>" else "<"
    return (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + struct.pack(f"{order}{len(values)}{code}", *values)
    )


# --- names ---


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("exact", "exact"),
        ("numeric", "numeric:rel=1e-06,abs=0"),
        ("numeric:rel=0.001", "numeric:rel=0.001,abs=0"),
        ("numeric:skip=*.log,skip=a\\,b,abs=1e-9", "numeric:skip=*.log,skip=a\\,b,abs=1e-09,rel=1e-06"),
        ("text:ignore=^took .* s$", "text:ignore=^took .* s$"),
        ("json:ignore=time", "json:ignore=time,rel=0,abs=0"),
    ],
)
def test_a_spec_is_kept_with_its_defaults_and_means_the_same_again(spec: str, text: str) -> None:
    choice = names.choose(spec, {})
    assert choice.text == text
    assert names.choose(choice.text, {}).text == text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nonsense", "is not known; there is: exact, numeric"),
        ("", "is not a validator's name"),
        ("numeric:", "nothing follows the colon"),
        ("numeric:rel", "is not OPTION=VALUE"),
        ("numeric:size=1", "there is no option 'size'; it takes: rel, abs, skip"),
        ("numeric:rel=much", "must be a number"),
        ("numeric:rel=-1", "must be a number of zero or more"),
        ("numeric:rel=nan", "must be a number"),
        ("numeric:rel=1,rel=2", "given twice"),
        ("image:similarity=2", "between 0 and 1"),
        ("text:ignore=(", "is not a regular expression"),
        ("exact:rel=1", "there is no option 'rel'; it takes: none"),
        ("program:image=x", "name the image and the command"),
        ("x" * 3000, "longer than"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said(spec: str, words: str) -> None:
    with pytest.raises(names.BadValidator, match=re.escape(words)):
        names.choose(spec, {})


def test_a_sites_own_validator_is_chosen_by_name_and_its_options_are_known() -> None:
    own = {"mine": "def agree(a, b, *, depth='3'): return True", "any": "def agree(a, b, **more): ..."}
    assert names.choose("mine:depth=4", own) == names.Choice("mine", (("depth", "4"),), is_own=True)
    assert names.choose("any:x=1", own).all("x") == ["1"]
    with pytest.raises(names.BadValidator, match="it takes: depth"):
        names.choose("mine:deep=4", own)
    for broken in ("def agree(a, b:", "x = 1", "async def agree(a, b): ..."):
        with pytest.raises(names.BadValidator, match="tell the operator"):
            names.choose("mine", {"mine": broken})


@given(
    st.lists(
        st.tuples(st.sampled_from(["skip", "ignore"]), st.text(min_size=1).filter(lambda t: "\0" not in t)), max_size=4
    )
)
def test_any_value_survives_being_written(options: list[tuple[str, str]]) -> None:
    choice = names.Choice("json", (("rel", "0"), ("abs", "0"), *options))
    if len(choice.text) <= names.MOST_SPEC:
        assert names.split(choice.text) == ("json", list(choice.options))


# --- numbers ---


@given(st.floats(allow_nan=True), st.floats(allow_nan=True), st.floats(0, 1), st.floats(0, 1e9))
def test_agreement_of_numbers_is_symmetric_and_everything_agrees_with_itself(
    x: float, y: float, rel: float, most: float
) -> None:
    tolerance = Tolerance(rel=rel, abs=most)
    one, other, same = Tally(tolerance), Tally(tolerance), Tally(tolerance)
    one.compare(x, y, "here")
    other.compare(y, x, "here")
    same.compare(x, x, "here")
    assert one.off == other.off
    assert same.off == 0


@pytest.mark.parametrize(
    ("a", "b", "agrees"),
    [
        ("x = 1.0 2", "x = 1.0000000001   2", True),
        ("1e400", "1e400", True),
        ("1.0D+00 nan", "1.0e0 NaN", True),
        ("12345678901234567890", "12345678901234567891", True),
        ("1.0", "1.1", False),
        ("inf", "-inf", False),
        ("nan", "1.0", False),
        ("inf", "1e308", False),
        ("a 1.0", "b 1.0", False),
        ("v1.2.3000001", "v1.2.3000002", False),
        ("deadbeef1234567e", "deadbeef1234568e", False),
        ("1 2", "1 2 3", False),
        ("1\n2\n", "1\n", False),
        ("1\n\n", "1\n", True),
        ("(1+2j)", "(1+2.000000001j)", True),
    ],
)
def test_text_with_numbers(agree: Callable[..., Agreement], a: str, b: str, agrees: bool) -> None:
    assert agree("numeric", {"t.txt": a}, {"t.txt": b}).agrees is agrees


def test_the_words_say_where_and_by_how_much(agree: Callable[..., Agreement]) -> None:
    said = agree("numeric", {"t.txt": "1 2\n3 4\n"}, {"t.txt": "1 2\n3 4.4\n"})
    assert said.words.startswith("t.txt, line 2, number 2: 4 and 4.4 differ by 0.4 (relative 0.0909)")
    assert "1 of 2 numbers" in said.words
    assert "only the second" in agree("numeric", {}, {"t.txt": "1"}).words
    assert "2 numbers agree" in agree("numeric", {"t.txt": "1 2"}, {"t.txt": "1.0000001 2"}).words


# --- files ---


def test_arrays(agree: Callable[..., Agreement], tmp_path: Path) -> None:
    values = [1.0, -2.0, 0.0, 1e300]
    assert agree("numeric", {"x.npy": npy(values)}, {"x.npy": npy([*values[:3], 1e300 * (1 + 1e-9)])}).agrees
    assert agree("numeric", {"x.npy": npy(values)}, {"x.npy": npy(values, dtype=">f8")}).agrees
    assert agree("numeric", {"x.npy": npy([1.5, 2])}, {"x.npy": npy([1.5, 2], dtype="<f4", code="f")}).agrees
    said = agree("numeric", {"x.npy": npy(values, "(2, 2)")}, {"x.npy": npy([1.0, -2.0, 0.1, 1e300], "(2, 2)")})
    assert "x.npy[1, 0]: 0.0 and 0.1" in said.words
    assert "shapes" in agree("numeric", {"x.npy": npy(values)}, {"x.npy": npy(values, "(2, 2)")}).words
    for name, change in (("a.npz", 1.0), ("b.npz", 1.0 + 1e-8), ("c.npz", 2.0)):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", npy([change]))
    a, b, c = [{"x.npz": (tmp_path / name).read_bytes()} for name in ("a.npz", "b.npz", "c.npz")]
    assert agree("numeric", a, b).agrees
    assert "x.npz[x.npy][0]" in agree("numeric", a, c).words


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        npy([1.0])[:-1],
        npy([1.0]) + b"x",
        npy([1.0], dtype="|O"),
        npy([1.0], dtype="<f8", descr=[("a", "<f8")]),
        npy([1.0], "(-1,)"),
        npy([1.0], "(1 << 60,)"),
        npy([1.0], "'x'"),
        b"\x93NUMPY\x01\x00\x10\x00__import__('os')",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    ],
)
def test_a_damaged_or_hostile_array_is_unreadable(tmp_path: Path, data: bytes) -> None:
    verdict = builtin.of(names.choose("numeric", {})).check(folder(tmp_path, {"x.npy": data}))
    assert not verdict.good
    assert "x.npy" in verdict.words


def test_json(agree: Callable[..., Agreement], tmp_path: Path) -> None:
    a = {"x.json": '{"a": [1, 2.5], "t": 3, "s": "x"}'}
    assert agree("json:ignore=t", a, {"x.json": '{ "s":"x", "a":[1,2.5], "t": 4}'}).agrees
    assert "x.json.a[1]: 2.5 and 2.6" in agree("json:ignore=t", a, {"x.json": '{"s":"x","a":[1,2.6],"t":4}'}).words
    assert agree("json:rel=0.1,ignore=t", a, {"x.json": '{"s":"x","a":[1,2.6],"t":4}'}).agrees
    assert "key 'b'" in agree("json", a, {"x.json": '{"a": [1, 2.5], "t": 3, "s": "x", "b": 1}'}).words
    assert not agree("json", {"x.json": "1"}, {"x.json": "true"}).agrees
    for bad in ("{", '{"a":1,"a":2}', "[" * 100_000, '"\\ud8', "\xff"):
        verdict = builtin.of(names.choose("json", {})).check(
            folder(tmp_path / "bad", {"x.json": bad.encode("latin-1")})
        )
        assert not verdict.good


def test_tables(agree: Callable[..., Agreement]) -> None:
    a = {"t.csv": "id,x,when\n1,0.5,10:00\n2,0.6,10:01\n"}
    b = {"t.csv": "id,x,when\n2,0.6000001,11:01\n1,0.5,11:00\n"}
    assert agree("csv:rel=1e-5,key=id,ignore=when", a, b).agrees
    assert "row 2, column 'id'" in agree("csv:rel=1e-5,ignore=when", a, b).words
    assert "column 'when'" in agree("csv:rel=1e-5,key=id", a, b).words
    assert "the columns" in agree("csv", a, {"t.csv": "id;y\n1;2\n"}).words
    assert "rows" in agree("csv", a, {"t.csv": "id,x,when\n"}).words


def test_text(agree: Callable[..., Agreement]) -> None:
    a, b = {"t": "hello\ntook 3 s\nend"}, {"t": "hello\r\ntook 4 s\r\nend\r\n"}
    assert agree("text:ignore=took .* s", a, b).agrees
    assert "line 2: 'took 3 s' and 'took 4 s'" in agree("text", a, b).words
    assert agree("text:ignore=^took.*$", a, {"t": "hello\nend"}).agrees


# --- pictures ---


def picture(channels: int = 3, shift: int = 0) -> Picture:
    draws = random.Random(7)
    rows = [bytes((draws.randrange(200) + shift) % 256 for _ in range(40 * channels)) for _ in range(33)]
    return Picture(40, 33, channels, rows)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures(agree: Callable[..., Agreement], channels: int) -> None:
    a, near, far = picture(channels), picture(channels, 1), picture(channels, 20)
    assert pictures.decode(pictures.encode(a), "a.png") == a
    assert agree("image", {"a.png": pictures.encode(a)}, {"a.png": pictures.encode(near)}).agrees
    assert "alike by 0.92" in agree("image", {"a.png": pictures.encode(a)}, {"a.png": pictures.encode(far)}).words
    assert (
        "40 x 33"
        in agree("image", {"a.png": pictures.encode(a)}, {"a.png": pictures.encode(picture(channels % 4 + 1))}).words
    )


def test_one_wrong_corner_is_seen(agree: Callable[..., Agreement]) -> None:
    a = picture()
    rows = [*a.rows]
    for y in range(8):
        rows[y] = bytes(255 - sample for sample in rows[y][:24]) + rows[y][24:]
    said = agree(
        "image:similarity=0.9", {"a.png": pictures.encode(a)}, {"a.png": pictures.encode(Picture(40, 33, 3, rows))}
    )
    assert "the block at 0,0" in said.words


@pytest.mark.parametrize(
    ("kind", "depth", "colour"), [(k, d, c) for k in range(5) for d, c in ((8, 2), (16, 0), (4, 3), (1, 0))]
)
def test_every_filter_and_depth_decodes(kind: int, depth: int, colour: int) -> None:
    width, height, channels = 9, 5, {0: 1, 2: 3, 3: 1}[colour]
    stride = -(-width * channels * depth // 8)
    raw = b"".join(bytes([kind]) + bytes((7 * i + y) % 256 for i in range(stride)) for y in range(height))
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        *([(b"PLTE", bytes(range(48)))] if colour == 3 else []),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    data = pictures.PNG + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts
    )
    decoded = pictures.decode(data, "x.png")
    assert (decoded.width, decoded.height) == (width, height)
    assert all(len(row) == width * decoded.channels for row in decoded.rows)


@given(st.binary(max_size=200))
def test_damaged_pictures_are_unreadable_and_nothing_worse(noise: bytes) -> None:
    whole = pictures.encode(picture())
    for data in (pictures.PNG + noise, b"P6" + noise, b"P6 1 1 255\n" + noise, whole[: len(noise) * 3], whole + noise):
        with contextlib.suppress(pictures.Unreadable):
            assert pictures.decode(data, "x.png").rows


def test_a_picture_that_unpacks_to_more_than_it_says_is_not_unpacked() -> None:
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1 << 28))),
        (b"IEND", b""),
    ]
    data = pictures.PNG + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts
    )
    assert len(pictures.decode(data, "x.png").rows) == 1
    with pytest.raises(pictures.Unreadable, match="pixels"):
        pictures.decode(b"P5 99999 99999 255\n", "x.ppm")


# --- results tars ---


def test_a_results_tar_becomes_files_and_anything_else_is_refused(tmp_path: Path) -> None:
    import io

    tar = results_tar(**{"a/b.txt": b"x" * 1000, "c": b""})
    unpack(io.BytesIO(tar), tmp_path / "good", TarBounds())
    assert Output(tmp_path / "good").names == ("a/b.txt", "c")
    assert Output(tmp_path / "good").read("a/b.txt") == b"x" * 1000
    evil = tar.replace(b"a/b.txt", b"../.txt", 1)
    with pytest.raises(BadResults):
        unpack(io.BytesIO(evil), tmp_path / "bad", TarBounds())
    assert not (tmp_path / "bad").exists()


def test_links_are_not_files_of_an_output(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to("/etc/passwd")
    assert Output(tmp_path / "a").names == ()


# --- the sandbox ---


def own(source: str, seconds: float = 20.0, memory: int = 1 << 30) -> Setup:
    choice = names.choose("mine", {"mine": source})
    return Setup(choice=choice, source=source, bounds=Bounds(seconds=seconds, memory_bytes=memory))


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    folder(tmp_path / "a", {"t.txt": "1.0"})
    folder(tmp_path / "b", {"t.txt": "1.0000000001"})
    folder(tmp_path / "c", {"t.txt": "2"})
    return tmp_path


def test_a_validator_answers_from_its_own_process(outputs: Path) -> None:
    with Sandbox(Setup(choice=names.choose("numeric", {})), outputs) as sandbox:
        assert sandbox.check("a") == Verdict.accept()
        assert sandbox.agree("a", "b").agrees
        assert not sandbox.agree("a", "c").agrees
        assert "limits" in sandbox.belts


def test_a_sites_own_validator_may_print_and_take_options(outputs: Path) -> None:
    source = (
        "from distributio.validators.verdicts import Agreement, Verdict\n"
        "def check(output): print('{}'); return 't.txt' in output\n"
        "def agree(a, b, *, most):\n"
        "    apart = abs(float(a.text('t.txt')) - float(b.text('t.txt')))\n"
        "    return Agreement.yes() if apart <= float(most) else Agreement.no(f'{apart} apart')\n"
    )
    setup = Setup(choice=names.choose("mine:most=0.5", {"mine": source}), source=source)
    with Sandbox(setup, outputs) as sandbox:
        assert sandbox.check("a").good
        assert sandbox.agree("a", "b").agrees
        assert sandbox.agree("a", "c") == Agreement.no("1.0 apart")


HARM = {
    "reads the machine's files": "open('/etc/passwd').read()",
    "writes": "open('a/new', 'w').write('x')",
    "writes to /tmp": "open('/tmp/distributio-harm', 'w').write('x')",
    "opens a socket": "__import__('socket').create_connection(('127.0.0.1', 9))",
    "forks": "__import__('os').fork()",
    "starts a program": "__import__('subprocess').run(['/bin/true'])",
    "kills its parent": "__import__('os').kill(__import__('os').getppid(), 9)",
    "takes all memory": "bytearray(8 << 30)",
    "recurses": "agree(a, b)",
    "raises": "1 / 0",
    "says nonsense": "pass",
}


@pytest.mark.parametrize("what", HARM)
def test_a_validator_that_means_harm_does_none_and_goes_on(outputs: Path, what: str) -> None:
    with Sandbox(own(f"def check(a): return True\ndef agree(a, b):\n    {HARM[what]}"), outputs) as sandbox:
        with pytest.raises(ValidatorTrouble, match="the validator"):
            sandbox.agree("a", "b")
        assert sandbox.check("a").good
    assert not (outputs / "a" / "new").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; print('bye', flush=True); os._exit(3)", "exit code 3: bye"),
        ("import ctypes; ctypes.string_at(0)", "signal 11"),
        ("import os, time; os.close(3); time.sleep(60)", "the validator"),
    ],
)
def test_a_validator_that_dies_is_started_again(outputs: Path, code: str, words: str) -> None:
    with Sandbox(own(f"def check(a): return True\ndef agree(a, b):\n    {code}", seconds=3), outputs) as sandbox:
        with pytest.raises(ValidatorTrouble, match=words):
            sandbox.agree("a", "b")
        assert sandbox.check("a").good


def test_a_validator_that_never_ends_is_stopped(outputs: Path) -> None:
    setup = own("def agree(a, b):\n    while True: pass", seconds=0.5)
    with Sandbox(setup, outputs) as sandbox, pytest.raises(ValidatorTrouble, match=r"longer than 0\.5 s"):
        sandbox.agree("a", "b")


@pytest.mark.parametrize(
    "source", ["import no_such_module\ndef agree(a, b): ...", "raise SystemExit(1)\ndef agree(a, b): ..."]
)
def test_a_validator_that_cannot_be_loaded_is_told_apart(outputs: Path, source: str) -> None:
    with Sandbox(own(source), outputs) as sandbox, pytest.raises(NotLoaded, match="cannot be loaded"):
        sandbox.check("a")


# --- mutants and the shipped examples ---

SHIPPED = {
    "monte-carlo": ("numeric:rel=1e-9,skip=*.log", {"one bit flipped", "a last digit changed"}),
    "matrix-product": ("numeric:rel=1e-9,abs=1e-12", {"one bit flipped", "one byte flipped", "a last digit changed"}),
    "rendered-image": ("image:similarity=0.995,block=0.95", {"a pixel inverted"}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_examples_agree_and_only_what_cannot_matter_is_missed(tmp_path: Path, name: str) -> None:
    spec, missed = SHIPPED[name]
    validator = builtin.of(names.choose(spec, {}))
    a, b = Output(EXAMPLES / name / "a"), Output(EXAMPLES / name / "b")
    assert validator.agree(a, b).agrees
    assert not builtin.of(names.choose("exact", {})).agree(a, b).agrees
    assert f'validator = "{spec}"' in (EXAMPLES / name / "job.toml").read_text()
    found = set()
    for number, mutant in enumerate(mutants(a)):
        files = {each: a.read(each) for each in a.names} | mutant.files
        copy = folder(tmp_path / str(number), {each: data for each, data in files.items() if data is not None})
        assert not builtin.of(names.choose("exact", {})).agree(a, copy).agrees, mutant.what
        if validator.check(copy).good and validator.agree(a, copy).agrees:
            found.add(mutant.what)
    assert found == missed


def test_mutants_of_any_output_can_be_made(tmp_path: Path) -> None:
    for number, files in enumerate(
        (
            {},
            {"e": b""},
            {"t": b"0\n"},
            {"x.npy": npy([0.0])},
            {"x.npy": b"\x93NUMPY"},
            {"z": b"\0" * 9},
            {"x.json": json.dumps([1.5])},
        )
    ):
        output = folder(tmp_path / str(number), files)  # type: ignore[arg-type]
        made = list(mutants(output))
        assert made[-1].what == "file added"
