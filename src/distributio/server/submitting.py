"""How a batch comes to be: a submission is checked against what the site has, and the jobs of an old one are sent again."""

import json
import time

import msgspec

from distributio.lifecycle.dispatch import Shape
from distributio.lifecycle.model import JobState, Policy
from distributio.server import boinc_apps, boinc_names, images_api, native_api, preflight
from distributio.server.problems import Refused
from distributio.server.routes import Answer, Call, json_response
from distributio.server.site import Site
from distributio.server.submissions import Submit
from distributio.server.validation import Validators
from distributio.store import catalog, views
from distributio.store.catalog import Image
from distributio.wire import oci
from distributio.wire.native import BatchSubmission, JobChoice

_AT_ONCE = 5_000  # jobs of the old batch read at once


async def submit(call: Call) -> Answer:
    """Submit jobs: they are ready to be sent when this answers."""
    return await _submit(call, call.body, call.project_id("member"))


async def _submit(
    call: Call,
    submission: BatchSubmission,
    project_id: int,
    *,
    policy: Policy | None = None,
    image_digest: str = "",
) -> Answer:
    site = call.site
    validators = Validators(site.data, site.settings.validator_engine)
    count = preflight.check_words(submission, site.settings.max_jobs_per_batch, validators)
    spec = submission.spec
    policy = policy or preflight.policy_of(submission.policy, spec, validators)
    image = None
    if spec.runner.startswith(boinc_names.RUNNER):
        await boinc_apps.check_runner(site, spec.runner.removeprefix(boinc_names.RUNNER))
    if spec.runner == "container":
        image = await _image(call, project_id, spec.image, image_digest)
    digests = [each.digest for each in spec.inputs]
    missing = await site.read(catalog.missing_files, project_id, digests) if digests else []
    if missing:
        paths = [f"{each.path}: {each.digest}" for each in spec.inputs if each.digest in missing]
        raise Refused(422, "missing-input", f"the site does not have {', '.join(paths)}", paths)
    shape = preflight.shape_of(spec, image)
    batch_id = await site.ledger.ask(
        Submit(
            project_id=project_id,
            user_id=call.caller.user_id,
            name=submission.name[:120] or spec.image or spec.runner,
            labels=json.dumps(submission.labels),
            spec=msgspec.json.encode(spec).decode(),
            policy=policy,
            shape=shape,
            image_id=image.id if image else None,
            priority=submission.priority,
            count=count,
            choices=submission.jobs,
            input_digests=digests,
            idempotency_key=call.request.headers.get("idempotency-key"),
            request_digest=preflight.digest_of_request(submission),
            repository=oci.parse_reference(image.reference).name if image else "",
        )
    )
    found = await site.read(views.batch, batch_id)
    assert found is not None
    found[0].warnings = await _warnings(site, shape, policy)
    return json_response(found[0], 201)


async def _warnings(site: Site, shape: Shape, policy: Policy) -> list[str]:
    if site.presence.suffices(shape, policy.quorum):
        return []
    hosts = await site.read(views.present_hosts, time.time() - site.settings.away_seconds)
    warnings = preflight.warnings_of(shape, policy, hosts)
    if not warnings:
        site.presence.remember(shape, policy.quorum)
    return warnings


async def _image(call: Call, project_id: int, reference: str, digest: str) -> Image:
    """The image of that digest, if the project still has it; else what its name stands for now."""
    pinned = await call.site.read(catalog.image_by_reference, project_id, digest) if digest else None
    return pinned or await images_api.resolve(call, project_id, reference)


async def rerun_batch(call: Call) -> Answer:
    """Submit those jobs of a batch again that failed or were cancelled (`only=failed`, the default) or all (`only=all`), as
    a new batch, in the same image."""
    batch, project_id = await native_api.find_batch(call, "member")
    only = call.query("only", "failed")
    if only not in ("failed", "all"):
        raise Refused(422, "bad-request", f"only={only!r}: failed or all")
    states = None if only == "all" else [JobState.FAILED.value, JobState.CANCELLED.value]
    choices: list[JobChoice] = []
    after = 0
    while page := await call.site.read(views.choices_of, batch.id, states, after, _AT_ONCE):
        choices += [choice for _, choice in page]
        after = page[-1][0]
    if not choices:
        raise Refused(409, "nothing-to-rerun", f"no job of batch {batch.id} has failed")
    submission = BatchSubmission(
        spec=batch.spec,
        name=batch.name,
        labels={**batch.labels, "rerun-of": str(batch.id)},
        priority=batch.priority,
        jobs=choices,
    )
    policy = msgspec.convert(batch.policy, Policy)
    return await _submit(call, submission, project_id, policy=policy, image_digest=batch.image_digest)
