"""What a job file may say: TOML, one table for each matter; the JSON schema is made from these types."""

import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from distributio.cli import inputs, order, quantities
from distributio.cli.exits import Stop
from distributio.cli.order import Order
from distributio.wire.native import JobChoice, Limits, Spec

Scalar = str | int | float | bool
Size = Annotated[int | str, Meta(description="Bytes, or a size such as 512m or 2g.")]
Length = Annotated[int | float | str, Meta(description="Seconds, or a time such as 30m, 2h or 1d.")]


class JobTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """What runs."""

    image: Annotated[str, Meta(min_length=1, description="The image, as for docker run.")]
    command: Annotated[
        list[str] | str,
        Meta(description="The command; a string is split as a shell splits it. {name} stands for a variable."),
    ] = []
    name: str = ""
    entrypoint: Annotated[list[str] | str | None, Meta(description='Instead of the image\'s own; "" for none.')] = None
    env: dict[str, Scalar] = {}
    labels: dict[str, Scalar] = {}
    workdir: str = ""
    user: str = ""
    tmpfs: Annotated[dict[str, str], Meta(description="Mount point to options, such as size=64m.")] = {}
    shm: Size = "64m"
    ulimits: dict[str, str] = {}
    init: bool = False
    writable: Annotated[bool, Meta(description="Let the job write anywhere in its container.")] = False
    platform: str = ""
    network: Annotated[bool, Meta(description="Ask for a network: only machines whose owners allow it.")] = False


class LimitsTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """What one copy of a job may use."""

    cpus: float = 1.0
    memory: Size = "512m"
    disk: Size = "1g"
    processes: int = 256
    wall: Length = "1d"
    log: Size = "100m"
    gpus: int = 0


class InputTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """A file, folder or pattern of this machine, by a path from the job file's folder."""

    source: str
    path: Annotated[str, Meta(description="Where it is in the container. Default: /input/NAME.")] = ""


class PolicyTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """How many copies, and when to give up."""

    quorum: int | None = None
    replicas: int | None = None
    retries: int | None = None
    deadline: Length | None = None
    validator: str | None = None
    max_tasks: Annotated[int | None, Meta(description="Copies in all before a job is given up.")] = None
    priority: int = 0


class ManyTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """Many jobs of one: each combination of array, lines and matrix is a job; or `jobs` says each one's variables."""

    array: Annotated[str, Meta(description="Ranges such as 1-1000 or 0-100:10; the variable is {index}.")] = ""
    each_line: Annotated[str, Meta(description="A file with one line for each job; the variable is {line}.")] = ""
    matrix: Annotated[
        dict[str, list[Scalar] | str], Meta(description="Each variable's values, as a list or as 0..9.")
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
