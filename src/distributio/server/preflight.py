"""What is checked before a batch is accepted, so that it fails now rather than on a stranger's machine in an hour."""

import hashlib
import re

import msgspec

from distributio.lifecycle.dispatch import ALIKE, Offer, Shape, never_fits
from distributio.lifecycle.model import EXACT, Policy
from distributio.server.boinc_names import RUNNER as BOINC_RUNNER
from distributio.server.problems import Refused, because
from distributio.server.validation import Validators
from distributio.store.catalog import Image
from distributio.validators.names import BadValidator
from distributio.wire.native import LEASE_MARGIN_SECONDS, BatchSubmission, HostFacts, PolicyChoice, Spec

_ABSOLUTE = re.compile(r"^/[^\0]*$")
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
_ENVIRONMENT = re.compile(r"^[^=\0]+$")
RUNNERS = ("container", "fake")
MOST_COMMAND_BYTES = 128 << 10
MOST_FACTS_BYTES = 32 << 10


def check_words(submission: BatchSubmission, most_jobs: int, validators: Validators) -> int:
    """Check what needs no look at the site; return the number of jobs. Raises Refused with every mistake found."""
    spec = submission.spec
    errors: list[str] = []
    if spec.runner not in RUNNERS and not spec.runner.startswith(BOINC_RUNNER):
        errors.append(f"spec.runner: {spec.runner!r} is not one of {', '.join(RUNNERS)}")
    if spec.runner == "container" and not spec.image:
        errors.append("spec.image: name the image the jobs run, as in python:alpine")
    errors += _words_of_variables(submission)
    paths = [("spec.workdir", spec.workdir)] if spec.workdir else []
    paths += [("spec.tmpfs", path) for path in spec.tmpfs]
    paths += [("spec.inputs.path", each.path) for each in spec.inputs]
    errors += [
        f"{where}: {path!r} must be an absolute path without .."
        for where, path in paths
        if not _ABSOLUTE.match(path) or ".." in path.split("/")
    ]
    if len({each.path for each in spec.inputs}) < len(spec.inputs):
        errors.append("spec.inputs: two inputs have the same path")
    if sum(map(len, spec.command)) > MOST_COMMAND_BYTES:
        errors.append(f"spec.command: longer than {MOST_COMMAND_BYTES} bytes; put it into an input file")
    if any("\0" in part for part in spec.command):
        errors.append("spec.command: a NUL byte cannot be an argument")
    count = submission.count if submission.jobs is None else len(submission.jobs)
    if count == 0:
        errors.append("jobs: the list is empty; a batch has at least one job")
    if count > most_jobs:
        errors.append(f"jobs: {count} are more than the {most_jobs} one submission may have; split it")
    try:
        validators.choose(submission.policy.validator)
    except BadValidator as error:
        errors.append(f"policy.validator: {error}")
    if submission.policy.alike and submission.policy.alike not in ALIKE:
        errors.append(f"policy.alike: {submission.policy.alike!r} is not known; there is: {', '.join(ALIKE)}")
    errors += _known_answers(submission)
    if errors:
        raise Refused(422, "bad-request", errors[0], errors)
    return count


def _known_answers(submission: BatchSubmission) -> list[str]:
    known = {choice.expect for choice in submission.jobs or [] if choice.expect}
    errors = [
        f"jobs.expect: {digest!r} is not a digest such as sha256:..." for digest in known if not _DIGEST.match(digest)
    ]
    if known and submission.policy.validator != EXACT:
        errors.append(f"jobs.expect: answers are known byte for byte, so the validator must be {EXACT}")
    return errors


def _words_of_variables(submission: BatchSubmission) -> list[str]:
    """Mistakes in what is set in an environment."""
    spec = submission.spec
    found = [f"spec.environment: {name!r} is not a name" for name in spec.environment if not _ENVIRONMENT.match(name)]
    found += [
        f"spec.environment: the value of {name!r} has a NUL" for name, text in spec.environment.items() if "\0" in text
    ]
    for position, choice in enumerate(submission.jobs or (), 1):
        for name, value in choice.variables.items():
            if not _ENVIRONMENT.match(name) or "\0" in value:
                found.append(f"jobs[{position}].variables: {name!r} cannot be set in an environment")
        if any("\0" in part for part in choice.command or ()):
            found.append(f"jobs[{position}].command: a NUL byte cannot be an argument")
    return found[:100]


def check_facts(facts: HostFacts) -> None:
    """Refuse a host that says more of itself than anybody wants to know."""
    size = len(msgspec.json.encode(facts))
    if size > MOST_FACTS_BYTES:
        raise Refused(
            413, "too-large", f"facts: {size} bytes are more than the {MOST_FACTS_BYTES} a host may say of itself"
        )


def policy_of(choice: PolicyChoice, spec: Spec, validators: Validators) -> Policy:
    """The policy a choice means, with the defaults in place. Raises Refused if it can never be met."""
    # Adaptive jobs begin with one copy; the others are made where the host that gets it is not trusted.
    quorum = 1 if choice.adaptive else choice.quorum
    target = max(quorum, choice.target_tasks or quorum)
    compared = choice.adaptive_quorum if choice.adaptive else quorum
    errors = compared + 2 if choice.max_errors is None else choice.max_errors
    policy = Policy(
        quorum=quorum,
        target_tasks=target,
        # As many hosts must see a command fail as must agree on a success.
        max_failures=compared - 1 if choice.max_failures is None else choice.max_failures,
        max_errors=errors,
        max_tasks=choice.max_tasks or max(target, compared) + max(11, errors),
        max_successes=choice.max_successes or max(target, compared) + 5,
        deadline_seconds=choice.deadline_seconds or int(2 * spec.limits.wall_seconds) + LEASE_MARGIN_SECONDS,
        # With every default in place, so that what is asked for stays what it was when defaults change.
        validator=validators.choose(choice.validator).text,
        adaptive=choice.adaptive,
        adaptive_quorum=choice.adaptive_quorum,
        alike=choice.alike,
    )
    if policy.max_tasks < max(policy.target_tasks, compared) or policy.max_successes < compared:
        raise Refused(
            422,
            "bad-request",
            f"policy: quorum {compared}, target_tasks {target}, max_successes {policy.max_successes} and "
            f"max_tasks {policy.max_tasks} cannot be met together",
        )
    return policy


def shape_of(spec: Spec, image: Image | None) -> Shape:
    """What the jobs ask of a host. Raises Refused if the image has nothing for the platform that is asked for."""
    platforms = tuple(sorted(image.platforms)) if image else ()
    if spec.platform:
        if image and spec.platform not in image.platforms:
            offered = ", ".join(platforms)
            raise Refused(422, "platform-missing", f"{spec.image} has no build for {spec.platform}; it has: {offered}")
        platforms = (spec.platform,)
    return Shape(
        runner=spec.runner,
        platforms=platforms,
        cpus=spec.limits.cpus,
        memory_bytes=spec.limits.memory_bytes,
        disk_bytes=spec.limits.disk_bytes,
        gpus=spec.limits.gpus,
        network=spec.network,
    )


def offer_of(facts: HostFacts) -> Offer:
    """What a host could give when it is idle."""
    return Offer(
        platform=facts.platform,
        runners=tuple(facts.runners),
        cpus=facts.cpus,
        memory_bytes=facts.memory_bytes,
        disk_bytes=facts.disk_bytes,
        gpus=facts.gpus,
        network_allowed=facts.network_allowed,
        free_cpus=facts.cpus,
        free_memory_bytes=facts.memory_bytes,
        free_disk_bytes=facts.disk_bytes,
        free_gpus=facts.gpus,
        free_tasks=1 << 20,
        cpu_model=facts.cpu_model,
    )


def could_run(shape: Shape, hosts: list[HostFacts]) -> tuple[int, dict[str, int]]:
    """How many of these hosts could ever run such a job, and what the others lack."""
    able = 0
    lacking: dict[str, int] = {}
    for facts in hosts:
        code = never_fits(shape, offer_of(facts))
        if code is None:
            able += 1
        else:
            lacking[code] = lacking.get(code, 0) + 1
    return able, lacking


def warnings_of(shape: Shape, policy: Policy, hosts: list[HostFacts]) -> list[str]:
    """What will make the jobs wait, though it does not forbid them."""
    if not hosts:
        return [because("no-hosts-yet").sentence]
    able, lacking = could_run(shape, hosts)
    if able == 0:
        reasons = "; ".join(because(code, count).sentence for code, count in sorted(lacking.items()))
        return [f"{because('no-host-could-run-this').sentence} {reasons}"]
    if able < policy.quorum:
        return [because("too-few-hosts-for-quorum").sentence]
    return []


def digest_of_request(submission: BatchSubmission) -> str:
    """What tells one request from another under the same idempotency key."""
    return hashlib.sha256(msgspec.json.encode(submission)).hexdigest()
