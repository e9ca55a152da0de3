"""What each option of `run` and `submit` is called, takes and means: one table for parser, help and reference."""

from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct

from distributio.cli import quantities, refused_options
from distributio.cli.exits import Stop

Parse = Callable[[str], Any]


class Option(Struct, frozen=True, kw_only=True):
    """One option: its names, its value as help shows it (empty: a switch), where the value goes, and one sentence."""

    names: tuple[str, ...]
    goes_to: str
    value: str = ""
    parse: Parse = str
    repeats: bool = False
    section: str = "docker"  # "docker", "ours", "many" (submit only), "nothing" (changes nothing)
    help: str = ""


# --- values that need a word of explanation ---------------------------------------------------------------------


def _network(text: str) -> bool:
    if text == "none":
        return False
    if text in ("bridge", "default", "slirp4netns", "pasta"):
        return True
    raise Stop(
        f"--network {text} cannot be granted: a job never sees the network of the machine it runs on. Jobs have none "
        "unless you say `--network bridge`, and then run only on machines whose owners allow it."
    )


def _gpus(text: str) -> int:
    counted = text.removeprefix("count=")
    if not counted.isdecimal():
        raise Stop(f"--gpus {text}: which GPUs a lent machine has is not known here. Say how many: `--gpus 1`.")
    return int(counted)


def _pids(text: str) -> int:
    count = quantities.whole(text)
    if count < 1:
        raise Stop(
            "--pids-limit without a limit cannot be granted on a lent machine. Say how many processes, at least 1."
        )
    return count


def _quorum(text: str) -> int | str:
    return text if text == "adaptive" else quantities.whole(text)


def _only(name: str, *harmless: str, advice: str) -> Parse:
    def check(text: str) -> None:
        if text.lower() not in harmless:
            said = name if text == "true" else f"{name} {text}"
            raise Stop(f"{said} cannot be granted on a lent machine. {advice}")

    return check


def _choice(name: str, *choices: str) -> Parse:
    def check(text: str) -> str:
        if text not in choices:
            raise Stop(f"{name} {text}: choose one of {', '.join(choices)}.")
        return text

    return check


def _attach(text: str) -> None:
    if text.lower() == "stdin":
        raise Stop("-a stdin cannot be granted: jobs read no standard input. Send a file with --input instead.")


_SAFE_SECURITY = ("no-new-privileges", "no-new-privileges=true", "no-new-privileges:true")


def _option(section: str, names: str, goes_to: str, value: str = "", **more: Any) -> Option:
    return Option(names=tuple(names.split()), goes_to=goes_to, value=value, section=section, **more)


_taken = partial(_option, "docker")
_ours = partial(_option, "ours")
_many = partial(_option, "many")


def _harmless(names: str, goes_to: str = "changes_nothing", value: str = "", **more: Any) -> Option:
    return _option("nothing", names, goes_to, value, **more)


OPTIONS: tuple[Option, ...] = (
    _taken(
        "-e --env", "env", "NAME[=VALUE]", repeats=True, help="Set an environment variable; without a value, your own."
    ),
    _taken(
        "--env-file", "env_files", "FILE", repeats=True, help="Read environment variables from a file, as docker does."
    ),
    _taken(
        "-v --volume",
        "volumes",
        "LOCAL:PATH:ro",
        repeats=True,
        help="Send a file or folder with the job; it appears at PATH, read-only.",
    ),
    _taken(
        "--mount", "mounts", "SPEC", repeats=True, help="The same for type=bind,...,readonly; type=tmpfs as --tmpfs."
    ),
    _taken("-w --workdir", "workdir", "PATH", help="Where the command starts inside the container."),
    _taken("--entrypoint", "entrypoint", "PROGRAM", help="Run this instead of the image's entry point; empty: none."),
    _taken("--cpus", "cpus", "NUMBER", parse=quantities.number, help="Processor cores, such as 1.5. Default 1."),
    _taken(
        "-m --memory", "memory_bytes", "SIZE", parse=quantities.size, help="Memory, such as 512m or 2g. Default 512m."
    ),
    _taken("--memory-swap", "memory_swap", "SIZE", help="Taken when equal to --memory: jobs use no swap."),
    _taken("--gpus", "gpus", "NUMBER", parse=_gpus, help="How many GPUs."),
    _taken("--name", "name", "NAME", help="A name for people."),
    _taken("-u --user", "user", "USER", help="The user inside the container."),
    _taken("--tmpfs", "tmpfs", "PATH[:OPTIONS]", repeats=True, help="A folder in memory; counts as memory."),
    _taken("--shm-size", "shm_bytes", "SIZE", parse=quantities.size, help="Size of /dev/shm. Default 64m."),
    _taken("--ulimit", "ulimits", "NAME=SOFT[:HARD]", repeats=True, help="A limit of the container's processes."),
    _taken("--init", "init", help="Run a small init that reaps processes."),
    _taken("--platform", "platform", "OS/ARCH", help="Only machines of this platform, such as linux/amd64."),
    _taken("-l --label", "labels", "NAME[=VALUE]", repeats=True, help="A label for people and scripts."),
    _taken(
        "--network --net",
        "network",
        "none|bridge",
        parse=_network,
        help="none is the default; bridge: only machines whose owners allow it.",
    ),
    _taken("--read-only", "read_only", help="The default; --read-only=false is --writable."),
    _taken("--pids-limit", "processes", "NUMBER", parse=_pids, help="The most processes. Default 256."),
    _taken(
        "--pull",
        "pull",
        "missing|always|never",
        parse=_choice("--pull", "missing", "always", "never"),
        help="always: the site looks for a newer image first; never: it must hold it.",
    ),
    _taken("-d --detach", "detach", help="Print the id and return at once."),
    _harmless("-i --interactive", "interactive", help="Accepted; jobs read no standard input."),
    _harmless("-t --tty", help="Accepted; jobs have no terminal."),
    _harmless("--rm", help="Accepted; containers are always removed."),
    _harmless("-q --quiet", help="Accepted."),
    _harmless("--sig-proxy", help="Accepted."),
    _harmless("--no-healthcheck", help="Accepted; health checks are never run."),
    _harmless("--disable-content-trust", help="Accepted; images are checked by digest."),
    _harmless(
        "--oom-kill-disable",
        parse=_only(
            "--oom-kill-disable",
            "false",
            advice="A job that uses more memory than it asked for is ended; ask for more with -m.",
        ),
        help="Accepted as =false.",
    ),
    _harmless("-a --attach", value="STREAM", parse=_attach, help="Accepted for stdout and stderr."),
    _harmless("--cap-drop", value="NAME", help="Accepted; every capability is dropped."),
    _harmless(
        "--privileged",
        parse=_only("--privileged", "false", advice="Jobs run without any privilege; leave it out."),
        help="Accepted as =false.",
    ),
    _harmless(
        "-P --publish-all",
        parse=_only("--publish-all", "false", advice=refused_options.NO_PORTS),
        help="Accepted as =false.",
    ),
    _harmless(
        "--security-opt",
        value="OPTION",
        parse=_only(
            "--security-opt", *_SAFE_SECURITY, advice="Protection can not be loosened; no-new-privileges is always on."
        ),
        help="Accepted for no-new-privileges, which is always on.",
    ),
    _harmless(
        "--ipc",
        value="MODE",
        parse=_only("--ipc", "private", "none", advice="Every job has its own; --shm-size makes it larger."),
        help="Accepted as private.",
    ),
    _harmless(
        "--pid",
        value="MODE",
        parse=_only("--pid", "private", advice="A job sees only its own processes; leave it out."),
        help="Accepted as private.",
    ),
    _harmless(
        "--restart",
        value="POLICY",
        parse=_only("--restart", "no", advice="To try again after a failure, use --retries."),
        help="Accepted as no; see --retries.",
    ),
    _ours(
        "--input",
        "inputs",
        "LOCAL[:PATH]",
        repeats=True,
        help="Send a file, folder or quoted pattern with the job; PATH is /input/NAME unless given.",
    ),
    _ours("--writable", "writable", help="Let the job write anywhere in its container; counts as disk."),
    _ours(
        "--replicas",
        "replicas",
        "NUMBER",
        parse=quantities.whole,
        help="Send this many copies from the start. Default: the quorum.",
    ),
    _ours(
        "--quorum",
        "quorum",
        "NUMBER|adaptive",
        parse=_quorum,
        help="Copies that must come back and be compared. Default 1. adaptive: one from machines that have earned trust, "
        "two from others, and spot checks.",
    ),
    _ours(
        "--alike",
        "alike",
        "os|cpu|model",
        parse=_choice("--alike", "os", "cpu", "model"),
        help="Send the copies of one job to machines that are alike, where results differ between kinds of them.",
    ),
    _ours("--validator", "validator", "SPEC", help="How results are compared, as in numeric:rel=1e-6. Default exact."),
    _ours(
        "--retries",
        "retries",
        "NUMBER",
        parse=quantities.whole,
        help="Failures of the command that are tried again. Default: quorum - 1.",
    ),
    _ours(
        "--timeout",
        "wall_seconds",
        "TIME",
        parse=quantities.seconds,
        help="The longest a copy may run, such as 2h. Default 1d.",
    ),
    _ours(
        "--deadline",
        "deadline_seconds",
        "TIME",
        parse=quantities.seconds,
        help="How long a machine may keep a copy before another gets it.",
    ),
    _ours(
        "--disk",
        "disk_bytes",
        "SIZE",
        parse=quantities.size,
        help="The most a job may write, results included. Default 1g.",
    ),
    _ours("--log-limit", "log_bytes", "SIZE", parse=quantities.size, help="The most it may print. Default 100m."),
    _ours(
        "--max-tasks", "max_tasks", "NUMBER", parse=quantities.whole, help="Copies in all before the job is given up."
    ),
    _ours("--local", "local", help="Send the image from this machine's podman or docker, whatever the site has."),
    _ours(
        "--priority",
        "priority",
        "NUMBER",
        parse=quantities.whole,
        help="Higher goes first within the project. Default 0.",
    ),
    _ours("--results", "results", "DIR", help="Where results are put, as DIR/BATCH/JOB/. Default results."),
    _ours("--no-results", "no_results", help="Leave the results on the site."),
    _ours("--project", "project", "NAME", help="The project that owns the job. Default: your token's."),
    _ours("--url", "url", "URL", help="The site. Default: the one you logged in to."),
    _ours(
        "-o --output",
        "output",
        "table|json|id",
        parse=_choice("-o", "table", "json", "id"),
        help="What is printed on standard output; json moves the log to standard error.",
    ),
    _many(
        "--array",
        "arrays",
        "RANGE",
        repeats=True,
        help="One job for each number: 1-1000, 0-100:10, 1,5,9; {index} in the command.",
    ),
    _many(
        "--each-line",
        "each_line",
        "FILE",
        repeats=True,
        help="One job for each line of a file (- is standard input); {line} in the command.",
    ),
    _many(
        "--matrix",
        "matrices",
        "NAME=V,V...",
        repeats=True,
        help="One job for each combination: lr=0.1,0.2 seed=0..9; {lr}, {seed} in the command.",
    ),
    _many(
        "--ringers",
        "ringers",
        "FILE",
        help="Mix in jobs whose results are known: a line each, as JSON, with variables and expect (the digest of the "
        "results). Machines cannot tell them apart; those that answer wrongly lose trust.",
    ),
    _many("--schema", "schema", help="Print the JSON schema of job files."),
)
