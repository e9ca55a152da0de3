"""What a job file may say: TOML, one table for each matter; the JSON schema is made from these types."""

import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from distributio.cli import inputs, order, quantities
from distributio.cli.exits import Stop
from distributio.cli.order import Order
from distributio.wire.native import JobChoice, Limits, Spec

Scalar = str | int | float | bool
Size = int | str  # bytes, or such as 512m
Length = int | float | str  # seconds, or such as 2h


class JobTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """What runs."""

    image: Annotated[str, Meta(min_length=1, description="The image, as for docker run.")]
    command: Annotated[
        list[str] | str,
        Meta(description="The command; a string is split as a shell splits it. {name} stands for a variable."),
    ] = []
    name: Annotated[str, Meta(description="A name for people.")] = ""
    entrypoint: Annotated[
        list[str] | str | None, Meta(description='Runs instead of the image\'s own; "" for none.')
    ] = None
    env: Annotated[dict[str, Scalar], Meta(description="Environment variables.")] = {}
    labels: Annotated[dict[str, Scalar], Meta(description="Labels for people and scripts.")] = {}
    workdir: Annotated[str, Meta(description="Where the command starts inside the container.")] = ""
    user: Annotated[str, Meta(description="The user inside the container.")] = ""
    tmpfs: Annotated[dict[str, str], Meta(description="Folders in memory: path to options, such as size=64m.")] = {}
    shm: Annotated[Size, Meta(description="Size of /dev/shm.")] = "64m"
    ulimits: Annotated[dict[str, str], Meta(description='Limits of processes, such as nofile = "1024:1024".')] = {}
    init: Annotated[bool, Meta(description="Run a small init that reaps processes.")] = False
    writable: Annotated[bool, Meta(description="Let the job write anywhere in its container.")] = False
    platform: Annotated[str, Meta(description="Only machines of this platform, such as linux/amd64.")] = ""
    network: Annotated[bool, Meta(description="Ask for a network: only machines whose owners allow it.")] = False


class LimitsTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """What one copy of a job may use. Sizes are bytes or such as 512m; times are seconds or such as 2h."""

    cpus: Annotated[float, Meta(description="Processor cores.")] = 1.0
    memory: Annotated[Size, Meta(description="Memory.")] = "512m"
    disk: Annotated[Size, Meta(description="What it may write, results included.")] = "1g"
    processes: Annotated[int, Meta(description="The most processes.")] = 256
    wall: Annotated[Length, Meta(description="The longest a copy may run.")] = "1d"
    log: Annotated[Size, Meta(description="The most it may print.")] = "100m"
    gpus: Annotated[int, Meta(description="How many GPUs.")] = 0


class InputTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """A file, folder or pattern of this machine; one [[inputs]] for each."""

    source: Annotated[str, Meta(description="Its path from the job file's folder.")]
    path: Annotated[str, Meta(description="Where it is in the container. Default: /input/NAME.")] = ""


class PolicyTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """How many copies, and when to give up."""

    quorum: Annotated[
        int | Literal["adaptive"] | None,
        Meta(
            description="Copies that must come back and be compared, or adaptive: as the machines' trust has it. Default 1."
        ),
    ] = None
    alike: Annotated[
        Literal["", "os", "cpu", "model"],
        Meta(description="Send the copies of one job to machines that are alike so far."),
    ] = ""
    replicas: Annotated[int | None, Meta(description="Copies that are sent from the start. Default: quorum.")] = None
    retries: Annotated[int | None, Meta(description="Failures of the command that are tried again.")] = None
    deadline: Annotated[Length | None, Meta(description="How long a machine may keep a copy.")] = None
    validator: Annotated[str | None, Meta(description="How results are compared. Default exact.")] = None
    max_tasks: Annotated[int | None, Meta(description="Copies in all before a job is given up.")] = None
    priority: Annotated[int, Meta(description="Higher goes first within the project.")] = 0


class ManyTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """Many jobs of one: each combination of array, lines and matrix is a job; or `jobs` says each one's variables."""

    array: Annotated[str, Meta(description="Ranges such as 1-1000 or 0-100:10; the variable is {index}.")] = ""
    each_line: Annotated[str, Meta(description="A file with one line for each job; the variable is {line}.")] = ""
    matrix: Annotated[
        dict[str, list[Scalar] | str], Meta(description='Each variable\'s values, as a list or as "0..9".')
    ] = {}
    jobs: Annotated[list[dict[str, Scalar]], Meta(description="The variables of each job.")] = []
    count: Annotated[int, Meta(ge=1, description="So many identical jobs.")] = 1


class JobFile(Struct, forbid_unknown_fields=True, kw_only=True):
    """A job file for `distributio submit FILE.toml`."""

    job: JobTable
    limits: LimitsTable = msgspec.field(default_factory=LimitsTable)
    inputs: list[InputTable] = []
    policy: PolicyTable = msgspec.field(default_factory=PolicyTable)
    many: ManyTable = msgspec.field(default_factory=ManyTable)


def schema() -> dict[str, Any]:
    """The JSON schema of job files."""
    return msgspec.json.schema(JobFile)


def parse(text: str, name: str) -> JobFile:
    """Read a job file's text; what is wrong is said with its place."""
    try:
        return msgspec.convert(tomllib.loads(text), JobFile)
    except tomllib.TOMLDecodeError as error:
        raise Stop(f"{name} is not TOML: {error}.") from error
    except msgspec.ValidationError as error:
        raise Stop(
            f"{name} is not a job file: {error}. `distributio submit --schema` prints what may be written."
        ) from error


def to_order(file: JobFile, base: Path, read: Callable[[str], str]) -> Order:
    """What a job file asks for; `base` is its folder, `read` reads a text file named from there."""
    job, policy = file.job, file.policy
    local = [
        item
        for entry in file.inputs
        for item in inputs.from_input(f"{entry.source}:{entry.path}" if entry.path else entry.source, base)
    ]
    order.no_two_in_one_place(local)
    jobs = _choices(file.many, read)
    if jobs is not None and file.many.count != 1:
        raise Stop("[many] count makes identical jobs; leave it out where array, each_line, matrix or jobs is given.")
    return Order(
        spec=Spec(
            image=job.image,
            command=_words(job.command),
            entrypoint=None if job.entrypoint is None else _words(job.entrypoint),
            environment=_texts(job.env),
            workdir=job.workdir,
            user=job.user,
            tmpfs=job.tmpfs,
            shm_bytes=_size(job.shm),
            ulimits=job.ulimits,
            init=job.init,
            writable_root=job.writable,
            platform=job.platform,
            network=job.network,
            limits=_limits(file.limits),
        ),
        inputs=tuple(local),
        policy=order.policy(
            quorum=policy.quorum,
            alike=policy.alike,
            replicas=policy.replicas,
            retries=policy.retries,
            deadline_seconds=None if policy.deadline is None else _seconds(policy.deadline),
            validator=policy.validator,
            max_tasks=policy.max_tasks,
        ),
        name=job.name,
        labels=_texts(job.labels),
        priority=policy.priority,
        count=file.many.count,
        jobs=jobs,
    )


def _choices(many: ManyTable, read: Callable[[str], str]) -> list[JobChoice] | None:
    axes: list[tuple[str, list[str]]] = []
    if many.array:
        axes.append(("index", quantities.indices(many.array)))
    if many.each_line:
        axes.append(("line", order.lines_of(many.each_line, read(many.each_line))))
    for name, values in many.matrix.items():
        axes.append(quantities.axis(f"{name}={values}") if isinstance(values, str) else (name, _each(values)))
    if axes and many.jobs:
        raise Stop("[many] has both jobs and array, each_line or matrix. Say the jobs in one way.")
    if many.jobs:
        return [JobChoice(variables=_texts(one)) for one in many.jobs]
    return order.combinations(axes)


def _limits(table: LimitsTable) -> Limits:
    return Limits(
        cpus=table.cpus,
        memory_bytes=_size(table.memory),
        disk_bytes=_size(table.disk),
        processes=table.processes,
        wall_seconds=_seconds(table.wall),
        log_bytes=_size(table.log),
        gpus=table.gpus,
    )


def _words(value: list[str] | str) -> list[str]:
    return shlex.split(value) if isinstance(value, str) else value


def _size(value: int | str) -> int:
    return quantities.size(value) if isinstance(value, str) else value


def _seconds(value: float | str) -> float:
    return quantities.seconds(value) if isinstance(value, str) else float(value)


def _texts(values: dict[str, Scalar]) -> dict[str, str]:
    return {name: _text(value) for name, value in values.items()}


def _each(values: list[Scalar]) -> list[str]:
    return [_text(value) for value in values]


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
