"""A job file says all that a command line can, and what it does not understand it names."""

from pathlib import Path

import jsonschema
import pytest

from distributio.cli import jobfile
from distributio.cli.exits import Stop

FULL = """
[job]
image = "python:alpine"
command = ["python", "-c", "print('{lr} {seed}')"]
name = "sweep"
entrypoint = ""
env = { SEED = 7, FAST = true, RATE = 0.5, TEXT = "a b" }
labels = { paper = "x" }
workdir = "/work"
user = "1000"
tmpfs = { "/scratch" = "size=64m" }
shm = "128m"
ulimits = { nofile = "1024:1024" }
init = true
writable = true
platform = "linux/amd64"
network = true

[limits]
cpus = 2
memory = "2g"
disk = 1000000000
processes = 50
wall = "1h30m"
log = "10m"
gpus = 1

[[inputs]]
source = "data.csv"
path = "/data/in.csv"

[[inputs]]
source = "tables/*.txt"
path = "/tables"

[policy]
quorum = 2
replicas = 3
retries = 1
deadline = "2d"
validator = "exact"
max_tasks = 9
priority = 5

[many]
matrix = { lr = [0.1, 0.2], seed = "0..2" }
"""


def read(text: str, base: Path) -> jobfile.Order:
    return jobfile.to_order(jobfile.parse(text, "job.toml"), base, lambda name: (base / name).read_text())


def test_everything_that_can_be_said_arrives(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.txt").write_text("2")
    order = read(FULL, tmp_path)
    assert order.spec.command == ["python", "-c", "print('{lr} {seed}')"]
    assert order.spec.entrypoint == []
    assert order.spec.environment == {"SEED": "7", "FAST": "true", "RATE": "0.5", "TEXT": "a b"}
    assert (order.spec.init, order.spec.writable_root, order.spec.network) == (True, True, True)
    assert (order.spec.shm_bytes, order.spec.limits.memory_bytes) == (128 << 20, 2 << 30)
    assert (order.spec.limits.wall_seconds, order.spec.limits.disk_bytes) == (5400.0, 1_000_000_000)
    assert [(item.source.name, item.path) for item in order.inputs] == [
        ("data.csv", "/data/in.csv"),
        ("a.txt", "/tables/a.txt"),
    ]
    assert (order.policy.quorum, order.policy.target_tasks, order.policy.max_failures) == (2, 3, 1)
    assert (order.policy.deadline_seconds, order.policy.max_tasks, order.priority) == (172_800, 9, 5)
    assert order.jobs is not None
    assert [job.variables for job in order.jobs][:4] == [
        {"lr": "0.1", "seed": "0"},
        {"lr": "0.1", "seed": "1"},
        {"lr": "0.1", "seed": "2"},
        {"lr": "0.2", "seed": "0"},
    ]


def test_the_defaults_are_those_of_the_command_line(tmp_path: Path) -> None:
    from distributio.cli import docker_options, order

    from_file = read('[job]\nimage = "python:alpine"\ncommand = "python -V"\n', tmp_path)
    from_line = order.from_options(docker_options.parse(["python:alpine", "python", "-V"]), {}, tmp_path, str)
    assert from_file == from_line


def test_a_command_in_one_string_is_split_as_by_a_shell(tmp_path: Path) -> None:
    order = read('[job]\nimage = "a"\ncommand = "sh -c \'echo $HOME  x\'"\n', tmp_path)
    assert order.spec.command == ["sh", "-c", "echo $HOME  x"]


@pytest.mark.parametrize(
    ("many", "count"),
    [
        ('array = "1-5"', 5),
        ('array = "0-10:5,20"', 4),
        ('each_line = "lines.txt"', 2),
        ('array = "1-3"\neach_line = "lines.txt"\nmatrix = { a = ["x", "y"] }', 12),
        ('jobs = [{ a = 1 }, { a = 2, b = "c" }]', 2),
    ],
)
def test_many_jobs(tmp_path: Path, many: str, count: int) -> None:
    (tmp_path / "lines.txt").write_text("one\n\n  \ntwo, too\n")
    order = read(f'[job]\nimage = "a"\n[many]\n{many}\n', tmp_path)
    assert order.jobs is not None
    assert len(order.jobs) == count


def test_identical_jobs_are_counted(tmp_path: Path) -> None:
    order = read('[job]\nimage = "a"\n[many]\ncount = 100\n', tmp_path)
    assert (order.count, order.jobs) == (100, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[job", "is not TOML"),
        ("[limits]\ncpus = 1\n", "missing required field `job`"),
        ('[job]\nimage = "a"\nimge = "b"\n', "imge"),
        ("[job]\nimage = 3\n", r"\$.job.image"),
        ('[job]\nimage = ""\n', r"\$.job.image"),
        ('[job]\nimage = "a"\n[limits]\nmemory = "lots"\n', "'lots' is not a size"),
        ('[job]\nimage = "a"\n[limits]\nwall = "soon"\n', "'soon' is not a length of time"),
        ('[job]\nimage = "a"\n[[inputs]]\nsource = "gone.csv"\n', "no file or folder gone.csv"),
        ('[job]\nimage = "a"\n[many]\narray = "5-1"\n', "is empty"),
        ('[job]\nimage = "a"\n[many]\narray = "1-2"\njobs = [{ a = 1 }]\n', "one way"),
        ('[job]\nimage = "a"\n[many]\narray = "1-2"\ncount = 3\n', "identical jobs"),
        ('[job]\nimage = "a"\n[many.matrix]\nindex = [1]\n[policy]\nquorum = 3\nreplicas = 2\n', "never be a quorum"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Stop, match=words):
        read(text, tmp_path)


def test_the_schema_accepts_what_we_accept(tmp_path: Path) -> None:
    import tomllib

    schema = jobfile.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(tomllib.loads(FULL))
    assert not validator.is_valid({"job": {"image": "a", "imge": "b"}})
    assert not validator.is_valid({})
