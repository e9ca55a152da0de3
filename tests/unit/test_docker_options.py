"""Every option of `docker run` is taken, changes nothing, or is refused with a reason; and the job's words stay its own."""

from typing import Any

import pytest

from distributio.cli import refused_options
from distributio.cli.docker_options import parse
from distributio.cli.exits import Stop
from distributio.cli.option_table import OPTIONS

GIB = 1 << 30

TAKEN: list[tuple[list[str], str, Any]] = [
    (["-e", "A=1"], "env", ["A=1"]),
    (["-eA=1"], "env", ["A=1"]),
    (["--env=A=b=c"], "env", ["A=b=c"]),
    (["-e", "A", "-e", "B="], "env", ["A", "B="]),
    (["--env-file", "a.env"], "env_files", ["a.env"]),
    (["-v", "./data:/data:ro"], "volumes", ["./data:/data:ro"]),
    (["--mount", "type=tmpfs,target=/x"], "mounts", ["type=tmpfs,target=/x"]),
    (["-w", "/work"], "workdir", "/work"),
    (["--entrypoint", ""], "entrypoint", ""),
    (["--entrypoint=/bin/sh"], "entrypoint", "/bin/sh"),
    (["--cpus", "1.5"], "cpus", 1.5),
    (["-m", "512m"], "memory_bytes", 512 << 20),
    (["-m2g"], "memory_bytes", 2 * GIB),
    (["--memory=1.5g"], "memory_bytes", GIB + GIB // 2),
    (["--gpus", "2"], "gpus", 2),
    (["--gpus", "count=1"], "gpus", 1),
    (["--name", "train"], "name", "train"),
    (["-u", "1000:1000"], "user", "1000:1000"),
    (["--tmpfs", "/x:size=64m"], "tmpfs", ["/x:size=64m"]),
    (["--shm-size", "1g"], "shm_bytes", GIB),
    (["--ulimit", "nofile=1024:2048"], "ulimits", ["nofile=1024:2048"]),
    (["--init"], "init", True),
    (["--init=false"], "init", False),
    (["--platform", "linux/arm64"], "platform", "linux/arm64"),
    (["-l", "a=b", "--label", "c"], "labels", ["a=b", "c"]),
    (["--network", "none"], "network", False),
    (["--net=bridge"], "network", True),
    (["--read-only"], "read_only", True),
    (["--read-only=false"], "read_only", False),
    (["--pids-limit", "10"], "processes", 10),
    (["--pull", "always"], "pull", "always"),
    (["-d"], "detach", True),
    (["-itd"], "detach", True),
    (["--replicas", "3"], "replicas", 3),
    (["--quorum=2"], "quorum", 2),
    (["--retries", "1"], "retries", 1),
    (["--timeout", "1h30m"], "wall_seconds", 5400.0),
    (["--deadline", "2d"], "deadline_seconds", 172_800.0),
    (["--disk", "10g"], "disk_bytes", 10 * GIB),
    (["--log-limit", "1m"], "log_bytes", 1 << 20),
    (["--max-tasks", "4"], "max_tasks", 4),
    (["--priority", "-5"], "priority", -5),
    (["--validator", "exact"], "validator", "exact"),
    (["--writable"], "writable", True),
    (["--local"], "local", True),
    (["--results", "out"], "results", "out"),
    (["--no-results"], "no_results", True),
    (["--project", "lab"], "project", "lab"),
    (["--url", "https://a.example"], "url", "https://a.example"),
    (["-o", "json"], "output", "json"),
    (["--input", "a.csv:/a.csv"], "inputs", ["a.csv:/a.csv"]),
]

HARMLESS = [
    "-i", "-t", "-it", "-ti", "--interactive", "--tty", "--rm", "--rm=true", "-q", "--sig-proxy=false", "--no-healthcheck",
    "-a stdout", "--attach=stderr", "--cap-drop ALL", "--privileged=false", "--security-opt no-new-privileges",
    "--ipc private", "--ipc=none", "--pid private", "--restart no", "--disable-content-trust", "--oom-kill-disable=false",
    "-P=false",
]  # fmt: skip

REFUSED = [
    "--privileged", "-p 80:80", "--publish=80", "-P", "--device /dev/kvm", "--cap-add SYS_ADMIN", "--pid host", "--ipc host",
    "--security-opt seccomp=unconfined", "--network host", "--network my-net", "--network container:x", "-a stdin",
    "--restart always", "--gpus all", "--gpus device=0", "--pids-limit -1", "--pids-limit 0", "--userns host",
    "--add-host a:1.2.3.4", "--dns 1.1.1.1", "--cpuset-cpus 0", "-c 512", "--hostname x", "-h x", "--volumes-from x",
    "--oom-kill-disable", "--runtime runsc", "--cidfile x", "--log-driver none", "--health-cmd true", "--pull sometimes",
]  # fmt: skip

HOSTILE_COMMANDS = [
    ["python", "-c", "print('Hello BOINC')"],
    ["sh", "-c", 'echo "$HOME" `id` $(id) \\ "quoted" \'single\''],
    ["echo", "a b", "", " ", "\t", "line\nbreak", "ünïcode 漢字 🙂"],
    ["--rm", "-e", "X=1", "--privileged", "--", "-p"],
    ["awk", "{print $1}", "{index}", "%s", "*.csv", "~", "!!"],
]


@pytest.mark.parametrize(("words", "field", "value"), TAKEN, ids=lambda value: str(value))
def test_an_option_is_taken(words: list[str], field: str, value: Any) -> None:
    given = parse([*words, "python:alpine", "true"])
    assert getattr(given, field) == value
    assert (given.image, given.command) == ("python:alpine", ["true"])
    assert field in given.named


@pytest.mark.parametrize("words", HARMLESS)
def test_what_holds_for_every_job_is_accepted(words: str) -> None:
    given = parse([*words.split(), "python:alpine", "true"])
    assert (given.image, given.command) == ("python:alpine", ["true"])


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_granted_is_refused_with_what_to_do(words: str) -> None:
    with pytest.raises(Stop) as refusal:
        parse([*words.split(), "python:alpine", "true"])
    text = str(refusal.value)
    assert text.startswith((words.split()[0].split("=")[0], "--publish-all"))
    assert text.count(". ") + text.count(": ") >= 1
    assert text.endswith(".")
    assert refusal.value.code == 2


@pytest.mark.parametrize("command", HOSTILE_COMMANDS)
def test_everything_after_the_image_is_the_jobs_and_untouched(command: list[str]) -> None:
    given = parse(["--rm", "-e", "A=$B 'x' \"y\"\nz", "python:alpine", *command])
    assert given.command == command
    assert given.env == ["A=$B 'x' \"y\"\nz"]


def test_the_seed_line_passes_unchanged() -> None:
    given = parse(["python:alpine", "python", "-c", "print('Hello BOINC')"])
    assert given.image == "python:alpine"
    assert given.command == ["python", "-c", "print('Hello BOINC')"]


def test_two_dashes_end_our_options() -> None:
    assert parse(["--rm", "--", "python:alpine", "-V"]).command == ["-V"]


@pytest.mark.parametrize("word", ["--foo", "-Z", "--envfile", "--mem"])
def test_an_unknown_option_is_not_passed_over(word: str) -> None:
    with pytest.raises(Stop, match=r"There is no option.*after the image"):
        parse([word, "python:alpine"])


def test_a_misspelled_option_is_guessed() -> None:
    with pytest.raises(Stop, match="Did you mean --env-file"):
        parse(["--envfile", "x", "python:alpine"])


@pytest.mark.parametrize("words", [["-e"], ["--memory"], ["-it", "-m"]])
def test_a_missing_value_is_said(words: list[str]) -> None:
    with pytest.raises(Stop, match="needs a value"):
        parse(words)


@pytest.mark.parametrize(
    "words", ["--cpus many", "-m 1x", "--timeout soon", "--replicas 1.5", "--init=maybe", "-o yaml"]
)
def test_a_value_that_is_not_one_names_its_option(words: str) -> None:
    with pytest.raises(Stop) as refusal:
        parse([*words.split(), "python:alpine"])
    name = words.split()[0].split("=")[0]
    names = next(option.names for option in OPTIONS if name in option.names)
    assert any(each in str(refusal.value) for each in names)


def test_options_for_many_jobs_belong_to_submit() -> None:
    with pytest.raises(Stop, match="distributio submit"):
        parse(["--array", "1-3", "python:alpine"])
    given = parse(["--array", "1-3", "--each-line", "a.txt", "--matrix", "a=1,2", "b=x,y", "img", "c=d"], many=True)
    assert given.arrays == ["1-3"]
    assert given.each_line == ["a.txt"]
    assert given.matrices == ["a=1,2", "b=x,y"]
    assert (given.image, given.command) == ("img", ["c=d"])


def test_help_is_ours_only_before_the_image() -> None:
    assert parse(["--help", "x"]).help
    assert not parse(["python:alpine", "--help"]).help


def test_no_option_is_both_taken_and_refused() -> None:
    taken = {name for option in OPTIONS for name in option.names}
    assert not taken & refused_options.REFUSED.keys()
    assert len(taken) == sum(len(option.names) for option in OPTIONS)


# What `docker run --help` of release 27 lists: each must be known here, one way or the other.
DOCKER_27 = """
add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile cpu-period
cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach detach-keys device
device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops disable-content-trust dns
dns-option dns-search domainname entrypoint env env-file expose gpus group-add health-cmd health-interval
health-retries health-start-interval health-start-period health-timeout hostname init interactive ip ip6 ipc isolation
kernel-memory label label-file link link-local-ip log-driver log-opt mac-address memory memory-reservation memory-swap
memory-swappiness mount name network network-alias no-healthcheck oom-kill-disable oom-score-adj pid pids-limit
platform privileged publish publish-all pull quiet read-only restart rm runtime security-opt shm-size sig-proxy
stop-signal stop-timeout storage-opt sysctl tmpfs tty ulimit user userns uts volume volume-driver volumes-from workdir
"""


@pytest.mark.parametrize("name", DOCKER_27.split())
def test_every_option_of_docker_run_is_known(name: str) -> None:
    taken = {each for option in OPTIONS for each in option.names}
    assert f"--{name}" in taken or refused_options.why(f"--{name}")
