"""What exactly is asked of the site: a command line turned into a submission, before any file is read or sent."""

import itertools
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from distributio.cli import inputs, quantities
from distributio.cli.docker_options import Given
from distributio.cli.exits import Stop
from distributio.cli.inputs import LocalInput
from distributio.wire.native import BatchSubmission, Input, JobChoice, Limits, PolicyChoice, Spec

ReadText = Callable[[str], str]

_RINGER = (
    'Write a line such as {"variables": {"index": "7"}, "expect": "sha256:..."}, the digest as result.json has it.'
)


class Order(Struct, frozen=True, kw_only=True):
    """A submission whose inputs are still on this machine."""

    spec: Spec
    inputs: tuple[LocalInput, ...] = ()
    policy: PolicyChoice = PolicyChoice()
    name: str = ""
    labels: dict[str, str] = {}
    priority: int = 0
    count: int = 1
    jobs: list[JobChoice] | None = None
    pull: str = "missing"

    def submission(self, sent: list[Input]) -> BatchSubmission:
        """The message, once the inputs are on the site."""
        return BatchSubmission(
            spec=replace(self.spec, inputs=sent),
            name=self.name,
            labels=self.labels,
            priority=self.priority,
            policy=self.policy,
            count=self.count,
            jobs=self.jobs,
        )


def from_options(given: Given, environment: Mapping[str, str], base: Path, read: ReadText) -> Order:
    """What a command line asks for. `environment` is the submitter's own, for `-e NAME`; `read` reads a text file."""
    if not given.image:
        raise Stop("Which image? Write [options] IMAGE [COMMAND...], such as `python:alpine python -V`.")
    _check_swap(given)
    local, tmpfs = _files(given, base)
    spec = Spec(
        image=given.image,
        command=given.command,
        entrypoint=None if given.entrypoint is None else [given.entrypoint] * bool(given.entrypoint),
        environment=variables(given, environment, read),
        workdir=given.workdir,
        user=given.user,
        tmpfs=tmpfs,
        shm_bytes=Spec().shm_bytes if given.shm_bytes is None else given.shm_bytes,
        ulimits=dict(_pair(text, "--ulimit") for text in given.ulimits),
        init=given.init,
        writable_root=given.writable or not given.read_only,
        platform=given.platform,
        network=given.network,
        limits=_limits(given),
    )
    return Order(
        spec=spec,
        inputs=local,
        policy=policy(
            quorum=given.quorum,
            alike=given.alike,
            replicas=given.replicas,
            retries=given.retries,
            deadline_seconds=given.deadline_seconds,
            validator=given.validator,
            max_tasks=given.max_tasks,
        ),
        name=given.name,
        labels=dict(text.partition("=")[::2] for text in given.labels),
        priority=given.priority or 0,
        jobs=mixed(choices(given, read), given.ringers, read),
        pull="local" if given.local else given.pull,
    )


def policy(
    *,
    quorum: int | str | None,
    replicas: int | None,
    retries: int | None,
    deadline_seconds: float | None,
    validator: str | None,
    max_tasks: int | None = None,
    alike: str = "",
) -> PolicyChoice:
    """What is said about copies; what is not said is left to the site."""
    needed = quorum if isinstance(quorum, int) else 1
    if replicas is not None and replicas < needed:
        raise Stop(
            f"{replicas} replicas can never be a quorum of {needed}. Leave --replicas out, or make it {needed} or more."
        )
    return PolicyChoice(
        quorum=needed,
        target_tasks=replicas,
        max_failures=retries,
        max_tasks=max_tasks,
        deadline_seconds=None if deadline_seconds is None else max(1, round(deadline_seconds)),
        validator=validator or "exact",
        adaptive=quorum == "adaptive",
        alike=alike,
    )


def variables(given: Given, environment: Mapping[str, str], read: ReadText) -> dict[str, str]:
    """Environment variables: those of files first, then those of the command line. A name alone takes the submitter's
    own value, and nothing if there is none, as docker has it."""
    lines = [line for name in given.env_files for line in _env_lines(name, read(name))]
    values: dict[str, str] = {}
    for text in [*lines, *given.env]:
        name, equals, value = text.partition("=")
        if not name:
            raise Stop(f"-e {text}: there is no name before the =. Write NAME=VALUE.")
        if equals:
            values[name] = value
        elif name in environment:
            values[name] = environment[name]
    return values


def choices(given: Given, read: ReadText) -> list[JobChoice] | None:
    """One job for each combination of the values given; None: just one job."""
    axes: list[tuple[str, list[str]]] = [("index", quantities.indices(text)) for text in given.arrays]
    axes += [("line", lines_of(name, read(name))) for name in given.each_line]
    axes += [quantities.axis(text) for text in given.matrices]
    return combinations(axes)


def mixed(jobs: list[JobChoice] | None, ringers: str, read: ReadText) -> list[JobChoice] | None:
    """The jobs with those of a file of known answers among them, in an order that nobody can guess."""
    if not ringers:
        return jobs
    known = [_ringer(ringers, number, line) for number, line in enumerate(lines_of(ringers, read(ringers)), 1)]
    together = [*(jobs or [JobChoice()]), *known]
    random.SystemRandom().shuffle(together)
    return together


def _ringer(name: str, number: int, line: str) -> JobChoice:
    try:
        choice = msgspec.json.decode(line, type=JobChoice)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Stop(f"{name}, line {number}: {error}. {_RINGER}") from error
    if not choice.expect:
        raise Stop(f"{name}, line {number}: there is no answer. {_RINGER}")
    return choice if choice.name else replace(choice, name="known answer")


def combinations(axes: list[tuple[str, list[str]]]) -> list[JobChoice] | None:
    """The product of the axes, the last one changing fastest."""
    if not axes:
        return None
    names = [name for name, _ in axes]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise Stop(f"The variable {doubled[0]} is given twice. Give each one once, with all its values.")
    total = 1
    for _, values in axes:
        total *= len(values)
    if total > quantities.MOST_JOBS:
        raise Stop(f"That makes {total:,} jobs; a batch may have {quantities.MOST_JOBS:,}. Submit several batches.")
    return [
        JobChoice(variables=dict(zip(names, values, strict=True)))
        for values in itertools.product(*(values for _, values in axes))
    ]


def lines_of(name: str, text: str) -> list[str]:
    """The lines that hold something."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise Stop(f"{name} holds no lines, so there would be no jobs.")
    return lines


def _env_lines(name: str, text: str) -> list[str]:
    lines = [line.lstrip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    for line in kept:
        if any(character.isspace() for character in line.partition("=")[0]):
            raise Stop(f"{name}: the line {line!r} has a blank in the name before the =. Write NAME=VALUE.")
    return kept


def _files(given: Given, base: Path) -> tuple[tuple[LocalInput, ...], dict[str, str]]:
    local = [inputs.from_volume(text, base) for text in given.volumes]
    tmpfs = dict(text.partition(":")[::2] for text in given.tmpfs)
    for text in given.mounts:
        mount = inputs.from_mount(text, base)
        if isinstance(mount, LocalInput):
            local.append(mount)
        else:
            tmpfs[mount[0]] = mount[1]
    for text in given.inputs:
        local.extend(inputs.from_input(text, base))
    no_two_in_one_place(local)
    return tuple(local), tmpfs


def no_two_in_one_place(local: list[LocalInput]) -> None:
    """Two inputs cannot be the same path of the container."""
    places: dict[str, Path] = {}
    for item in local:
        other = places.setdefault(item.path, item.source)
        if other != item.source:
            raise Stop(f"{other} and {item.source} would both be {item.path} in the container. Give one another path.")


def _limits(given: Given) -> Limits:
    said = {
        "cpus": given.cpus,
        "memory_bytes": given.memory_bytes,
        "disk_bytes": given.disk_bytes,
        "processes": given.processes,
        "log_bytes": given.log_bytes,
        "wall_seconds": given.wall_seconds,
        "gpus": given.gpus,
    }
    return replace(Limits(), **{name: value for name, value in said.items() if value is not None})


def _check_swap(given: Given) -> None:
    if not given.memory_swap:
        return
    wanted = quantities.size(given.memory_swap) if not given.memory_swap.startswith("-") else -1
    if wanted != given.memory_bytes:
        raise Stop("--memory-swap cannot be granted: jobs use no swap. Leave it out, or ask for more memory with -m.")


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise Stop(f"{option} {text}: write NAME=VALUE, such as nofile=1024:2048.")
    return name, value
