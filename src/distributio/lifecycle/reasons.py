"""What each reason code means, what to do about it, and who can do it: the one table behind every "why".

A code is set once and for all; its words may be improved. The page docs/reference/reasons.md is made from this table.
"""

from enum import StrEnum

from msgspec import Struct


class Who(StrEnum):
    """Who can change it."""

    SUBMITTER = "submitter"
    LENDER = "lender"
    OPERATOR = "operator"
    TIME = "time"  # nobody needs to


class Kind(StrEnum):
    """What a reason is a reason for."""

    WAITING = "waiting"
    ENDED = "ended"
    GIVEN_UP = "given_up"
    REFUSED = "refused"


class ReasonText(Struct, frozen=True):
    """A reason in words. `order` is its place in the table."""

    sentence: str
    advice: str
    who_can_change: Who
    kind: Kind
    order: int


class Because(Struct, frozen=True):
    """A reason as it applies: how often, or to how many."""

    code: str
    sentence: str
    advice: str
    count: int = 1


_S, _L, _O, _T = Who.SUBMITTER, Who.LENDER, Who.OPERATOR, Who.TIME
_Row = tuple[str, Who, str, str]

_READ_LOG = "Read its log: `distributio logs JOB`."
_ELSEWHERE = "Nothing to do: another copy goes to another host."
_AGAIN = "Nothing to do: it is tried again."

# Why a task is not sent, or a host gets no work.
_WAITING: tuple[_Row, ...] = (
    ("no-host-could-run-this", _S, "No host of this site could run this job.", "Ask for less, or lend a larger one."),
    ("host-memory", _S, "The job asks for more memory than the host lends.", "Ask for less with `-m`, or lend more."),
    ("host-cpus", _S, "The job asks for more processors than the host lends.",
     "Ask for fewer with `--cpus`, or lend more."),
    ("host-disk", _S, "The job asks for more disk than the host lends.", "Ask for less with `--disk`, or lend more."),
    ("host-gpus", _S, "The job asks for more GPUs than the host lends.", "Ask for fewer with `--gpus`, or lend some."),
    ("host-platform", _S, "The image has no build for the host's platform.", "Use an image built for more platforms."),
    ("host-network", _S, "The job wants the network, and the host's owner does not allow it.",
     "Leave out `--network`: send what the job needs as inputs. Or allow it in the policy of a host of your own."),
    ("host-runner", _L, "The host cannot run this kind of job: the engine it needs is missing or failed its self-test.",
     "Run `distributio host doctor` on the host; it says what to install or repair."),
    ("no-hosts-yet", _L, "No host is attached to this site.", "Lend this machine: `distributio host attach URL`."),
    ("no-host-awake", _L, "A host that could run it has not been heard of lately.",
     "See that the machine is on and `distributio host run` runs on it."),
    ("too-few-hosts-for-quorum", _S, "Fewer hosts could run this job than the copies that must agree.",
     "Lower `--quorum`, or attach hosts of other owners."),
    ("host-suspended", _L, "The host's owner has suspended it.", "Run `distributio host resume` on it."),
    ("host-not-now", _L, "The host's owner does not lend it at this time or while it is in use.",
     "Wait for its hours, or change its policy.toml."),
    ("not-for-this-project", _L, "The host's owner lends it to other projects only.",
     "Add the project to `projects` in the host's policy.toml."),
    ("host-busy", _T, "The host could run it and is busy with other work.",
     "Nothing to do: it gets its turn when there is room."),
    ("same-owner", _T, "The host's owner has, or had, another copy of this job; those to be compared go to others.",
     "Wait for a host of someone else, or find one to attach."),
    ("host-just-failed", _T, "The host could not run this job a moment ago.", "Nothing to do: others are asked first."),
    ("host-unlike", _S, "The copies of this job go to machines of one kind, and this host is of another.",
     "Nothing to do while machines of that kind are here; `--alike os` asks for less likeness than `--alike model`."),
    ("host-not-proven", _T, "An extra copy, to be quicker than one that is late, goes to a machine known to be quick.",
     "Nothing to do: the copy that is late still counts."),
    ("host-set-aside", _L, "The host's last results were errors or wrong, so it gets one task at a time, with rests between.",
     "Mend what its tasks' causes say (`distributio host doctor`): one good result brings it back."),
    ("daily-allowance", _L, "The host has had its share for today: trouble has lowered it, and good results raise it again.",
     "Nothing to do if it is well: its share is new tomorrow, and each good result doubles it."),
    ("host-failing-batch", _L, "The command of this batch fails on the host and not on others, so it rests from that batch.",
     "See the logs of its tasks. It is tried again by itself."),
    ("host-banned", _O, "The site's operator has banned the host.", "Ask the operator for the reason."),
    ("second-copy-unproven", _T, "A second copy is compared with the first, whose host is not trusted with this app yet.",
     "Nothing to do: hosts earn trust by results that others confirm."),
    ("second-copy-spot-check", _T, "A second copy is compared with the first, whose host is trusted: a spot check.",
     "Nothing to do: a share of all jobs is checked, whoever does them."),
    ("extra-copy", _T, "A copy is late and the batch is nearly done, so another machine has been given one as well.",
     "Nothing to do: the first that comes back counts, and the other is called off."),
    ("outputs-differ", _S, "Copies came back with different outputs, and not enough of them agree yet.",
     "Another copy decides. If it happens often, fix what varies (seeds, dates, file order), or choose a validator that "
     "allows for it, or `--alike cpu`."),
    ("validator-trouble", _O, "The validator failed on the outputs, and is tried again.",
     "Nothing to do at first; if it stays, try it with `distributio validate`, or tell the site's operator."),
    ("recheck-agrees", _T, "Its host was banned later; the job was done again elsewhere, with the same output.",
     "Nothing to do."),
    ("recheck-differs", _S, "Its host was banned later; the job was done again elsewhere, with another output.",
     "Compare the two with `distributio validate`, and use that of the re-check."),
    ("recheck-open", _T, "Its host was banned later, so the job is being done again elsewhere.", "Wait for the re-check."),
    ("others-first", _T, "Other projects had less of the site lately, and go first.",
     "Nothing to do: every project gets its turn."),
    ("project-disabled", _O, "The project is switched off.", "Ask the site's operator."),
    ("batch-cancelled", _S, "The batch was cancelled.", "If it is still wanted: `distributio rerun BATCH`."),
    ("no-ready-tasks", _T, "No task waits for a host.", "Nothing to do: the host is told when there is one."),
    ("nothing-fits", _T, "Tasks wait, and none of them is for this host.", "See the other reasons for what they ask."),
)  # fmt: skip

# How a task ended that brought no output: its cause.
_ENDED: tuple[_Row, ...] = (
    ("exit-code", _S, "The command ended with an exit code other than 0.", _READ_LOG),
    ("command-not-found", _S, "The command is not in the image, or may not be run.",
     "Check its name and path with `docker run` on your machine; `--entrypoint` replaces the image's own."),
    ("memory-limit", _S, "It used more memory than its limit.", "Give it more with `-m`, as in `-m 2g`."),
    ("wall-limit", _S, "It ran longer than its time limit.", "Give it more with `--timeout`, or make jobs smaller."),
    ("disk-limit", _S, "It wrote more to disk than its limit.", "Give it more with `--disk`, as in `--disk 10g`."),
    ("log-limit", _S, "It wrote more to its log than its limit.",
     "Write less to standard output, write to a file in /root/shared/results, or ask for fewer details."),
    ("process-limit", _S, "It wanted more processes than its limit.", "Give it more with `--pids-limit`."),
    ("results-bad", _S, "What it left in /root/shared/results cannot be kept: a device, for example, or too much.",
     "Write plain files and folders only."),
    ("results-unreadable", _L, "The host could not copy its results out of the container.", _ELSEWHERE),
    ("bad-output", _L, "What the host sent as its results is not what it said, or not a proper archive.", _ELSEWHERE),
    ("output-missing", _L, "The host reported success, and its results never arrived.", _ELSEWHERE),
    ("spec-bad", _S, "The host does not understand what the job asks for.",
     "The task's log says which option it is; mend it and submit again."),
    ("image-bad", _S, "The image cannot be run.",
     "Try it with `docker run`; rebuild or export it again if that fails too."),
    ("image-too-large", _S, "The image unpacks to more than a host accepts.", "Use a slimmer image."),
    ("image-unreadable", _L, "The host could not read the image it fetched.", _ELSEWHERE),
    ("image-incomplete", _L, "A part of the image is missing on the host.", _AGAIN),
    ("image-missing", _L, "The host's engine has lost the image.", _AGAIN),
    ("image-platform", _L, "The image is made for other machines than this host.", _ELSEWHERE),
    ("image-digest", _L, "A part of the image on the host is not what its digest says.",
     "Another copy goes to another host. If it happens again, check that machine's disk and memory."),
    ("digest-mismatch", _L, "What arrived is not what was sent: its digest differs.",
     "It is sent again. If it happens often, check that machine's disk, memory and connection."),
    ("input-missing", _L, "An input of the job is not on the host.", _ELSEWHERE),
    ("fetch-refused", _O, "The site refused the host a file that the job needs.",
     "Ask the operator to look in the site's log; the file may have been deleted."),
    ("upload-refused", _O, "The site refused the job's output.", "Ask the operator to look in the site's log."),
    ("engine-error", _L, "The host's container engine failed.", "On that host run `distributio host doctor`."),
    ("runner-missing", _L, "The host cannot run this kind of job any more.",
     "On that host run `distributio host doctor`."),
    ("slot-busy", _L, "The folder it was to run in is still used by another task.", _ELSEWHERE),
    ("not-ended", _L, "Its results were asked for before it had ended.", _ELSEWHERE),
    ("host-disk-full", _L, "The host's disk is full.", "Free some space there, or lend less of it."),
    ("killed", _L, "Something on the host killed it, and no limit of ours.",
     "Another copy goes to another host. If it happens everywhere, give the job more memory."),
    ("stopped", _L, "It was stopped on its host.", _ELSEWHERE),
    ("lost", _L, "The host's engine does not know how it ended.", _ELSEWHERE),
    ("lost-on-host", _L, "It is gone from the host it ran on.", _ELSEWHERE),
    ("report-missing", _L, "The host ended it and has lost its report.", _ELSEWHERE),
    ("host-restarted", _T, "The host restarted and lost it.", _ELSEWHERE),
    ("owner-stopped", _T, "The host's owner stopped the agent.", _ELSEWHERE),
    ("owner-needs-machine", _T, "The host's owner needs the machine.", _ELSEWHERE),
    ("owner-detached", _T, "The host's owner took it from the site.", _ELSEWHERE),
    ("host-detached", _T, "The host has left the site.", _ELSEWHERE),
    ("key-unknown", _L, "The site no longer knows the host's key.", "Join again: `distributio host attach URL`."),
    ("project-not-allowed", _L, "The host's owner lends it to other projects only.", _ELSEWHERE),
    ("network-not-allowed", _L, "The host's owner no longer allows the network.", _ELSEWHERE),
    ("user-not-possible", _L, "The host's engine cannot run jobs as the user this one asks for.", _ELSEWHERE),
    ("not-enough-lent", _L, "The host's owner now lends less than the job asks for.", _ELSEWHERE),
    ("waited-too-long", _T, "The host had no room for it in time.", _ELSEWHERE),
    ("deadline-passed", _T, "Nothing was heard of it before its deadline.",
     "Another copy was made; a late report still counts while it helps. Raise `--deadline` if hosts are slow."),
    ("wrong-answer", _L, "Its output is not the answer that is known beforehand.", _ELSEWHERE),
    ("host-banned-with-task", _T, "The site's operator banned the host while it had the task.", _ELSEWHERE),
    ("unreadable-output", _S, "The validator could not read its output.", "Try it with `distributio validate`."),
)  # fmt: skip

# Why a job was given up.
_GIVEN_UP: tuple[_Row, ...] = (
    ("too-many-failures", _S, "The command itself fails, on every host that tried.",
     f"{_READ_LOG} When it is mended: `distributio rerun --failed BATCH`."),
    ("too-many-errors", _L, "Too many hosts could not run it.", "The causes of its tasks say what each host lacked."),
    ("too-many-tasks", _S, "Every copy it may have was used, lost and late ones included.",
     "Look at the causes of its tasks; allow more with `--retries`, or a longer `--deadline`, if hosts come and go."),
    ("too-many-successes", _S, "Its outputs never agree: it does not give the same output twice.",
     "Fix what varies (seeds, dates, file order), or choose a validator that allows for it."),
    ("cancelled", _S, "It was cancelled.", "If it is still wanted: `distributio rerun BATCH`."),
)  # fmt: skip

# Why a request was refused, or a thing is not there.
_REFUSED: tuple[_Row, ...] = (
    ("bad-request", _S, "The request is not understood.", "Mend what the detail names; the reference has an example."),
    ("bad-token", _S, "The token is missing, unknown or expired.",
     "Log in again: `distributio login URL --token TOKEN`."),
    ("bad-host-key", _L, "The site does not know this host's key: it was detached, or never joined.",
     "Join again: `distributio host attach URL`."),
    ("form-expired", _S, "The form is too old, or was not sent from a page of this site.",
     "Open the page again and repeat what you did."),
    ("role-too-small", _S, "Your role in the project does not allow this.", "Ask a manager of the project."),
    ("operator-only", _O, "Only the site's operator may do this.", "Use the operator's token."),
    ("which-project", _S, "You have several projects, and it is not said which is meant.",
     "Name it: `--project NAME`, or DISTRIBUTIO_PROJECT."),
    ("not-found", _S, "There is no such thing here, or it is another project's.", "Check its number and the project."),
    ("method-not-allowed", _S, "That cannot be done with this address.", "The API reference lists what can."),
    ("unknown-image", _S, "No registry has an image of this name, or it is not public.",
     "Check its spelling and tag. An image of your own is sent with `docker save NAME | distributio image import -`."),
    ("image-unreachable", _O, "The registry of the image cannot be reached by the site.",
     "Try again later, or send it from your machine: `docker save NAME | distributio image import -`."),
    ("image-refused", _S, "The image cannot be had, or cannot be used.", "Mend what the detail names."),
    ("image-in-use", _S, "Jobs that are not over use this image.", "Wait for them, or cancel them first."),
    ("bad-image", _S, "The image or its name is damaged.", "Check the name; make archives with `docker save`."),
    ("platform-missing", _S, "The image has no build for the platform that is asked for.",
     "Leave out `--platform`, or use an image that has one."),
    ("missing-input", _S, "The site does not hold a file the batch needs.",
     "Upload it first (PUT /api/v1/files/DIGEST); the command line does so by itself."),
    ("unknown-app", _S, "The site has no BOINC app of this name.",
     "See which there are: `distributio app ls` on the site; `distributio app add FOLDER` adds one."),
    ("unknown-validator", _S, "There is no validator of this name.", "`exact` compares byte for byte."),
    ("quota-exceeded", _S, "This would be more than the project may use.",
     "Wait for jobs to end or delete what is not needed; the operator can raise the quota."),
    ("idempotency-conflict", _S, "This idempotency key was used for a different request.",
     "Use a new key for a new request, and the same key only to repeat one."),
    ("name-taken", _S, "The name is taken.", "Choose another."),
    ("nothing-to-rerun", _S, "No job of the batch has failed.", "Every job again: `distributio rerun BATCH`."),
    ("no-results", _S, "The job left no results.", "A job's results are what it writes to /root/shared/results."),
    ("not-handed-over", _T, "The job is not over yet, or its result is being written.",
     "Wait for it: `distributio wait BATCH`."),
    ("no-log", _T, "There is no log yet.", "Wait until the job runs."),
    ("too-large", _S, "That is larger than the site accepts.", "Send less, or ask the operator to raise the limit."),
    ("wrong-offset", _T, "The site holds another number of bytes than the upload says.",
     "Go on from the Upload-Offset in the answer."),
    ("wrong-digest", _S, "The bytes do not have the digest they were announced with.", "Send them again."),
    ("disk-full", _O, "The site's disk is full.", "Ask the operator to free space or add some; nothing was lost."),
    ("too-many-requests", _T, "Too many requests in a short time.", "Wait as long as Retry-After says."),
    ("database-away", _O, "The site's database cannot be reached.", "Try again in a moment."),
    ("storage-away", _O, "The site's file store cannot be reached.", "Try again in a moment."),
    ("shutting-down", _T, "The site is being restarted.", "Try again in a moment."),
    ("internal-error", _O, "The site made a mistake.", "Try again; if it stays, tell the operator when it happened."),
    ("not-a-site", _S, "What answers at this address is not a Distribut.io site.", "Check the address."),
)  # fmt: skip


def _read(*sections: tuple[Kind, tuple[_Row, ...]]) -> dict[str, ReasonText]:
    rows = [(kind, row) for kind, rows in sections for row in rows]
    return {
        code: ReasonText(sentence, advice, who, kind, order)
        for order, (kind, (code, who, sentence, advice)) in enumerate(rows)
    }


REASONS: dict[str, ReasonText] = _read(
    (Kind.WAITING, _WAITING), (Kind.ENDED, _ENDED), (Kind.GIVEN_UP, _GIVEN_UP), (Kind.REFUSED, _REFUSED)
)


def because(code: str, count: int = 1) -> Because:
    """The reason in words. A code that this release does not know, from a newer agent or site, stands for itself."""
    text = REASONS.get(code)
    if text is None:
        return Because(code, f"It says {code!r}, which this release does not know.", "Update to read more.", count)
    return Because(code, text.sentence, text.advice, count)
