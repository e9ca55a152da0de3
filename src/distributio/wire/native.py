"""The JSON messages of our own API: what agents, the SDK and the command line exchange with a site.

Sizes are in bytes, times in seconds, instants in seconds since 1970 (UTC). Unknown fields are ignored on both sides, so
that agents one release older or newer are understood. Encoding and decoding is msgspec's; the OpenAPI document is made from
these types.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct, field

INLINE_OUTPUT_BYTES = 65_536  # a results tar up to this size travels inside the report
LOG_BYTES = 1_048_576  # how much of a task's log the site keeps: its beginning and its end
LEASE_MARGIN_SECONDS = 300  # added to a job's own time limit to make the default lease

Name = Annotated[str, Meta(min_length=1, max_length=120)]
Digest = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]


class Problem(Struct, kw_only=True, omit_defaults=True):
    """An error, as RFC 9457 has it, with our reason code and what to do next."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str = ""
    advice: str = ""
    errors: list[str] = []


# --- what a job runs --------------------------------------------------------------------------------------------


class Limits(Struct, frozen=True, kw_only=True):
    """What one task may use. Hitting one ends the task and is said so in its cause."""

    cpus: Annotated[float, Meta(gt=0, le=1024)] = 1.0
    memory_bytes: Annotated[int, Meta(ge=16 << 20)] = 512 << 20
    disk_bytes: Annotated[int, Meta(ge=1 << 20)] = 1 << 30  # what it may write, results included
    processes: Annotated[int, Meta(ge=1, le=100_000)] = 256
    wall_seconds: Annotated[float, Meta(gt=0, le=366 * 86_400)] = 86_400.0
    log_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 100 << 20
    gpus: Annotated[int, Meta(ge=0, le=64)] = 0


class Input(Struct, frozen=True, kw_only=True):
    """A file or a folder (as a tar) put into the container before it starts, by content."""

    path: str  # absolute, inside the container
    digest: Digest
    size_bytes: int
    is_folder: bool = False
    read_only: bool = True


class Spec(Struct, frozen=True, kw_only=True):
    """How a batch's jobs run: `docker run` in data. Values in `command` and `environment` may hold `{name}` placeholders
    only where a job has variables; they are filled in by the site before a host sees them."""

    runner: str = "container"
    image: str = ""  # as typed; the site pins it
    command: list[str] = []
    entrypoint: list[str] | None = None  # None: the image's own
    environment: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    tmpfs: dict[str, str] = {}  # mount point to options, as docker's --tmpfs
    shm_bytes: int = 64 << 20
    ulimits: dict[str, str] = {}
    init: bool = False
    writable_root: bool = False
    platform: str = ""  # "linux/amd64"; empty: any the image has
    network: bool = False
    inputs: list[Input] = []
    limits: Limits = Limits()


class PolicyChoice(Struct, frozen=True, kw_only=True):
    """What the submitter says about copies; what is left out is the site's default."""

    quorum: Annotated[int, Meta(ge=1, le=20)] = 1
    target_tasks: Annotated[int, Meta(ge=1, le=20)] | None = None
    max_failures: Annotated[int, Meta(ge=0, le=100)] | None = None
    max_errors: Annotated[int, Meta(ge=0, le=100)] | None = None
    max_tasks: Annotated[int, Meta(ge=1, le=200)] | None = None
    max_successes: Annotated[int, Meta(ge=1, le=200)] | None = None
    deadline_seconds: Annotated[int, Meta(ge=1, le=366 * 86_400)] | None = None
    validator: str = "exact"
    adaptive: bool = False  # one copy where the host is trusted, `adaptive_quorum` where it is not, and spot checks
    adaptive_quorum: Annotated[int, Meta(ge=2, le=20)] = 2
    alike: str = ""  # "os", "cpu" or "model": copies of one job go to hosts that are alike so far


class JobChoice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What distinguishes one job of a batch from the others."""

    variables: dict[str, str] = {}  # fill {name} in command and environment, and are set as environment variables
    command: list[str] | None = None
    name: str = ""
    expect: str = ""  # the digest of its results, where they are known beforehand: hosts are not told


class BatchSubmission(Struct, frozen=True, kw_only=True):
    """Jobs submitted together. Either `jobs` lists what distinguishes them, or `count` identical ones are made."""

    spec: Spec
    name: str = ""
    labels: dict[str, str] = {}
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    policy: PolicyChoice = PolicyChoice()
    count: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    jobs: list[JobChoice] | None = None


class BatchView(Struct, kw_only=True):
    """A batch as people see it. `counts` has one number per job state."""

    id: int
    project: str
    name: str
    user: str
    state: str  # "active", "done" (every job done) or "ended" (some failed or were cancelled)
    created_at: float
    ended_at: float | None
    job_count: int
    counts: dict[str, int]
    priority: int
    labels: dict[str, str]
    image: str
    image_digest: str
    spec: Spec
    policy: dict[str, Any]
    eta_at: float | None = None  # when it may end, as it looks now
    warnings: list[str] = []  # from the preflight, in the answer to a submission only


class TaskView(Struct, kw_only=True):
    """One copy of a job. `host` is a public id; its name is shown to its owner and the operator only."""

    id: int
    attempt: int
    state: str
    outcome: str
    validity: str
    host: str | None
    sent_at: float | None
    deadline_at: float | None
    received_at: float | None
    exit_code: int | None
    cause: str
    output_digest: str
    output_bytes: int
    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    progress: float | None = None
    phase: str = ""  # what its host last said it is doing: "fetching", "running", "suspended"
    credit: float = 0.0  # what it earned, in cobblestones; filled when one job is asked for


class JobView(Struct, kw_only=True):
    """A job as people see it. `id` is BATCH.POSITION, positions count from 1."""

    id: str
    batch: int
    position: int
    name: str
    project: str
    state: str
    reasons: list[str]
    command: list[str]
    variables: dict[str, str]
    exit_code: int | None
    cause: str
    created_at: float
    decided_at: float | None
    has_results: bool  # whether there is a results tar to fetch
    handed_over: bool
    tasks: list[TaskView] = []  # filled when one job is asked for


class Page(Struct, kw_only=True):
    """Part of a list; ask again with `cursor` for what follows. No cursor: that was all."""

    items: list[Any]
    cursor: str | None = None


class Because(Struct, kw_only=True):
    """One reason, from the table of reason codes, with how often it applied."""

    code: str
    sentence: str
    advice: str
    count: int = 1


class Explanation(Struct, kw_only=True):
    """Why a job is where it is, the reasons its reader can change first."""

    job: str
    state: str
    summary: str
    because: list[Because]


class ImageView(Struct, kw_only=True):
    """An image of a project. `digest` is that of the manifest or index; `platforms` maps "os/arch" to a manifest digest."""

    id: int
    reference: str
    digest: str
    platforms: dict[str, str]
    size_bytes: int
    created_at: float
    jobs_using: int = 0


class ImageImport(Struct, frozen=True, kw_only=True):
    """Ask the site to fetch an image from a registry now."""

    reference: Name
    refresh: bool = False  # look again even if the tag is known


class HostAppView(Struct, kw_only=True):
    """What a host has earned with an app: a runner and an image repository, over all tags and batches."""

    runner: str
    repository: str
    trusted: bool  # whether it is believed without a second copy, spot checks apart
    consecutive_valid: int
    error_rate: float
    allowance: int  # tasks a day and processor
    set_aside: bool  # whether it gets one task at a time until one is good
    rest_until: float | None
    valid: int
    wrong: int
    errors: int


class HostView(Struct, kw_only=True):
    """A host as its owner and the operator see it."""

    id: str  # public id
    name: str
    state: str  # "active", "away", "suspended", "banned", "detached"
    platform: str
    cpus: int
    memory_bytes: int
    engine: str
    agent_version: str
    created_at: float
    last_seen_at: float
    running: int
    done: int
    failed: int
    why_idle: list[Because] = []
    credit: float = 0.0  # in cobblestones: 200 are a day of a machine of one GFLOPS
    recent_average: float = 0.0  # cobblestones a day, halving each week
    gflops: float = 0.0  # of one processor, as believed
    ban_reason: str = ""
    apps: list[HostAppView] = []


class HostChange(Struct, frozen=True, kw_only=True):
    """What the operator says of a host. What a host that is banned did alone in the last days is done again elsewhere."""

    state: str  # "banned" or "active"
    reason: Annotated[str, Meta(max_length=500)] = ""
    recheck_days: Annotated[float, Meta(ge=0, le=3650)] = 30.0


class HostChanged(Struct, kw_only=True):
    """A host after a change, and the batches of jobs that are done again. Some could not be, for the reasons given."""

    host: HostView
    rechecks: list[int] = []
    not_rechecked: dict[str, int] = {}


class Recheck(Struct, kw_only=True):
    """A job of a batch that is done again because its host was banned. `agrees` is null until it is over."""

    job: str
    again: str
    host: str | None
    state: str
    agrees: bool | None
    digest: str
    digest_again: str


class Leader(Struct, kw_only=True):
    """Someone who gives computing time. `name` is empty for those who have not agreed to be named."""

    rank: int
    name: str
    credit: float
    recent_average: float


class PersonChange(Struct, frozen=True, kw_only=True):
    """What a person says of themselves."""

    shows_name: bool  # whether the leaderboard names them


class TokenView(Struct, kw_only=True):
    """A token; `secret` is shown only in the answer that made it."""

    id: int
    name: str
    created_at: float
    expires_at: float | None
    secret: str = ""


class WhoAmI(Struct, kw_only=True):
    """Who a token speaks for."""

    user: str
    is_operator: bool
    project: str
    projects: dict[str, str]  # name to role
    credit: float = 0.0  # of all the person's hosts, in cobblestones
    recent_average: float = 0.0
    shows_name: bool = False  # whether the leaderboard names them


class QuotaView(Struct, kw_only=True):
    """A project's limits (absent: none) and use, by resource."""

    project: str
    limits: dict[str, int]
    usage: dict[str, int]


class NewUser(Struct, frozen=True, kw_only=True):
    """A person to be known to the site. The answer's token is theirs, shown once."""

    name: Name
    is_operator: bool = False
    project: str = ""  # of which they become a member
    role: str = "member"


class UserView(Struct, kw_only=True):
    """A person, as the operator sees them. `token` only in the answer that made them."""

    name: str
    is_operator: bool
    created_at: float
    projects: dict[str, str]  # name to role
    token: str = ""


class NewProject(Struct, frozen=True, kw_only=True):
    """A project to be made."""

    name: Name


class ProjectChange(Struct, frozen=True, kw_only=True):
    """What is to change about a project. Limits by resource; null lifts one. Members by name; null takes one out."""

    enabled: bool | None = None
    weight: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    limits: dict[str, int | None] = {}
    members: dict[str, str | None] = {}


class ProjectView(Struct, kw_only=True):
    """A project with its members' roles, limits and use."""

    name: str
    enabled: bool
    weight: float
    created_at: float
    members: dict[str, str]
    limits: dict[str, int]
    usage: dict[str, int]


class SiteStatus(Struct, kw_only=True):
    """The site in numbers."""

    name: str
    version: str
    url: str
    jobs: dict[str, int]
    tasks_in_progress: int
    tasks_ready: int
    hosts_active: int
    hosts_total: int


class SiteKey(Struct, kw_only=True):
    """The keys with which a site signs the records of results: the present one, and those before it that still count."""

    name: str
    url: str
    key: str  # "ed25519:" and base64
    earlier: list[str] = []


# --- agents -----------------------------------------------------------------------------------------------------


class HostFacts(Struct, frozen=True, kw_only=True):
    """What a machine is and lends. `cpus`, `memory_bytes` and `disk_bytes` are what its owner lends."""

    platform: str = "linux/amd64"
    name: str = ""
    cpus: int = 1
    memory_bytes: int = 1 << 30
    disk_bytes: int = 10 << 30
    gpus: int = 0
    runners: list[str] = field(default_factory=lambda: ["container"])  # those that passed their self-test
    engine: str = ""  # "podman 4.3.1 rootless"
    sandbox: list[str] = []  # protections that are in force: "userns", "seccomp", "cgroups", ...
    network_allowed: bool = False
    kernel: str = ""
    cpu_model: str = ""
    agent_version: str = ""
    gflops: float = 0.0  # of one processor, by the agent's benchmark; 0: not measured


class Attach(Struct, frozen=True, kw_only=True):
    """Join a site as a host. The token says whose host it is."""

    facts: HostFacts


class Attached(Struct, kw_only=True):
    """The host's own key, shown once; the site keeps a hash."""

    host: str
    key: str
    site_name: str


class WorkRequest(Struct, frozen=True, kw_only=True):
    """What is free on the host now."""

    cpus: float
    memory_bytes: int
    disk_bytes: int
    gpus: int = 0
    tasks: Annotated[int, Meta(ge=1, le=1000)] = 1  # at most so many


class TaskReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task that ended. `output` is the results tar itself where it is small; a larger one has been uploaded before."""

    task: int
    outcome: str  # "success", "failed", "error", "abandoned"
    exit_code: int | None = None
    cause: str = ""
    detail: str = ""  # the engine's own words, for the log
    output_digest: str = ""
    output_bytes: int = 0
    output: bytes | None = None  # base64 in JSON
    log: bytes | None = None  # what was not streamed before, from `log_offset` on
    log_offset: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


class TaskProgress(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task that is held and not over."""

    task: int
    phase: str = "running"  # "fetching", "waiting", "running", "suspended", "uploading"
    fraction: float | None = None


class Turn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All a host says at once: reports, what it holds, and what it could take. Answered when there is something to say, or
    after `wait_seconds`."""

    facts: HostFacts | None = None  # on the first turn and when they changed
    reports: list[TaskReport] = []
    held: list[TaskProgress] = []
    want: WorkRequest | None = None
    wait_seconds: Annotated[float, Meta(ge=0, le=60)] = 0.0


class Assignment(Struct, frozen=True, kw_only=True):
    """What a host is to run. `image_manifest` is the digest of the manifest for its platform, served under
    /v2/{image_name}/manifests/."""

    task: int
    job: str
    project: str
    spec: Spec  # placeholders filled
    image_name: str = ""
    image_manifest: str = ""
    deadline_at: float = 0.0


class TurnAnswer(Struct, kw_only=True, omit_defaults=True):
    """The site's answer to a turn. A report is done with once it is listed in `acknowledged`."""

    acknowledged: list[int] = []
    assignments: list[Assignment] = []
    cancel: list[int] = []  # held tasks that are no longer wanted
    why_no_work: list[Because] = []
    now: float = 0.0


class LogAnswer(Struct, kw_only=True):
    """How much of the task's log the site holds."""

    size_bytes: int
