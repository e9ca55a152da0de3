"""A command line becomes the submission it means; what can never work is found before anything is sent."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from distributio.cli import docker_options, sending
from distributio.cli.exits import Stop
from distributio.cli.order import Order, from_options


def ordered(words: list[str], base: Path, environment: Mapping[str, str] = {}, files: Mapping[str, str] = {}) -> Order:
    return from_options(docker_options.parse(words, many=True), environment, base, lambda name: files[name])


def test_environment_files_come_first_and_names_take_your_own_values(tmp_path: Path) -> None:
    order = ordered(
        ["--env-file", "a.env", "-e", "B=line", "-e", "MINE", "-e", "UNSET", "img"],
        tmp_path,
        {"MINE": "value", "INFILE": "f"},
        {"a.env": '# comment\n\nA=1 # kept\n  B=file\nINFILE\nQUOTED="x"\n'},
    )
    assert order.spec.environment == {"A": "1 # kept", "B": "line", "INFILE": "f", "QUOTED": '"x"', "MINE": "value"}


@pytest.mark.parametrize("line", ["A B=1", "bad name"])
def test_a_blank_in_a_name_is_refused_as_docker_does(tmp_path: Path, line: str) -> None:
    with pytest.raises(Stop, match="blank in the name"):
        ordered(["--env-file", "a.env", "img"], tmp_path, {}, {"a.env": line})


def test_files_are_inputs(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.csv").write_text("y")
    order = ordered(
        ["-v", "./data:/data:ro", "-v", "a.csv:/x/a.csv:ro,z", "--input", "*.csv:/tables", "--input", "data",
         "--mount", "type=bind,src=b.csv,dst=/b.csv,readonly", "--mount", "type=tmpfs,target=/t,tmpfs-size=1000",
         "--tmpfs", "/scratch:size=1m", "img"],
        tmp_path,
    )  # fmt: skip
    assert [(item.source.relative_to(tmp_path.resolve()).as_posix(), item.path) for item in order.inputs] == [
        ("data", "/data"),
        ("a.csv", "/x/a.csv"),
        ("b.csv", "/b.csv"),
        ("a.csv", "/tables/a.csv"),
        ("b.csv", "/tables/b.csv"),
        ("data", "/input/data"),
    ]
    assert order.spec.tmpfs == {"/scratch": "size=1m", "/t": "size=1000"}


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["-v", "./data:/data"], ":ro"),
        (["-v", "./data:/data:rw"], "/root/shared/results"),
        (["-v", "cache:/cache:ro"], "no volumes that outlive"),
        (["-v", "/data"], "LOCAL:/PATH:ro"),
        (["-v", "./data:/data:ro,nocopy"], "nocopy"),
        (["-v", "/:/host:ro"], "part of this system"),
        (["-v", "/etc:/etc:ro"], "part of this system"),
        (["-v", "/proc/self:/x:ro"], "part of this system"),
        (["-v", "/dev/null:/x:ro"], "part of this system"),
        (["-v", "./gone:/x:ro"], "no file or folder"),
        (["-v", "./data:/:ro"], "absolute path"),
        (["-v", "./data:/../x:ro"], "absolute path"),
        (["--input", "*.nothing"], "no file here"),
        (["--input", "https://a.example/x"], "Fetch the file"),
        (["--mount", "type=bind,src=./data,dst=/data"], "readonly"),
        (["--mount", "type=volume,src=x,dst=/data"], "only type=bind"),
        (["-v", "./data:/x:ro", "-v", "./other:/x:ro"], "would both be"),
        (["--memory-swap", "2g", "-m", "1g"], "no swap"),
        (["--ulimit", "nofile"], "NAME=VALUE"),
        (["-e", "=x"], "no name"),
        (["--quorum", "3", "--replicas", "2"], "never be a quorum"),
        (["--array", "1-3", "--matrix", "index=1,2"], "given twice"),
        (["--array", "1-10000", "--matrix", "a=0..9999"], "Submit several batches"),
        (["--array", "1-x"], "not an array"),
        (["--matrix", "1a=2"], "letters, digits"),
    ],
)
def test_what_cannot_work_says_what_to_write(tmp_path: Path, words: list[str], advice: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    with pytest.raises(Stop, match=advice):
        ordered([*words, "img"], tmp_path)


def test_equal_swap_is_no_swap(tmp_path: Path) -> None:
    assert ordered(["--memory-swap", "1g", "-m", "1g", "img"], tmp_path).spec.limits.memory_bytes == 1 << 30


def test_no_image_is_said(tmp_path: Path) -> None:
    with pytest.raises(Stop, match="Which image"):
        ordered(["--rm"], tmp_path)


def test_placeholders_travel_as_they_are(tmp_path: Path) -> None:
    order = ordered(["--array", "1-2", "img", "awk", "{print $1}", "in-{index}.txt"], tmp_path)
    assert order.spec.command == ["awk", "{print $1}", "in-{index}.txt"]
    assert order.jobs is not None
    assert [job.variables for job in order.jobs] == [{"index": "1"}, {"index": "2"}]


@pytest.mark.parametrize("words", [["--cpus", "0"], ["-m", "1m"], ["--priority", "5000"], ["--quorum", "21"]])
def test_what_the_site_would_refuse_is_found_here(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(Stop, match="cannot be submitted"):
        sending.check(ordered([*words, "img"], tmp_path))


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("python:alpine", "docker.io/library/python:alpine"),
        ("python", "docker.io/library/python:latest"),
        ("lab/tool:1", "docker.io/lab/tool:1"),
        ("localhost:5000/tool", "localhost:5000/tool:latest"),
        ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b@sha256:00"),
    ],
)
def test_image_names_are_compared_in_full(text: str, full: str) -> None:
    assert sending.canonical(text) == full
