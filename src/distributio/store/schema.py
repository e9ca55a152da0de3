"""The tables: what the site remembers, column by column.

States are words. JSON columns hold what is read whole and never searched. Instants are seconds since 1970, UTC. Every
batch, image and file belongs to a project from the first table on. Hot tables (jobs, tasks, queues) carry only what a
decision needs; partial indexes keep every search as long as its answer, whatever has finished before.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives only an INTEGER primary key its fast row number; PostgreSQL needs the wide type.
Id = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[int]:
    return Column("id", Id, primary_key=True)


def _ref(name: str, table: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Id, ForeignKey(f"{table}.id", ondelete="CASCADE"), nullable=nullable)


def _word(name: str, default: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default=default)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


def _amount(name: str) -> Column[float]:
    return Column(name, Float, nullable=False, server_default="0")


def _earnings() -> tuple[Column[int], Column[float]]:
    """Credit in millionths of a cobblestone, and the sum that lifecycle.credit.recent_average reads."""
    return _count("credit"), _amount("credit_kept")


# What the site knows of itself: its name, its keys' public halves, when it was made.
site = Table("site", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

users = Table(
    "users",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("email", Text, unique=True),
    Column("password_hash", Text),
    Column("is_operator", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("shows_name", Boolean, nullable=False, server_default="0"),  # on the leaderboard
    *_earnings(),
)

projects = Table(
    "projects",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("enabled", Boolean, nullable=False),
    Column("weight", Float, nullable=False, server_default="1"),  # its share among projects that wait
    Column("share_used", Float, nullable=False, server_default="0"),  # core-seconds sent, decayed to share_at
    Column("share_at", Float, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
    *_earnings(),  # of hosts, by its jobs
)

memberships = Table(
    "memberships",
    metadata,
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("project_id", Id, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    Column("role", Text, nullable=False),  # reader, member, manager
)

quotas = Table(
    "quotas",
    metadata,
    Column("project_id", Id, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    Column("resource", Text, primary_key=True),
    Column("most", BigInteger, nullable=False),
)

usages = Table(
    "usages",
    metadata,
    Column("project_id", Id, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    Column("resource", Text, primary_key=True),
    Column("used", BigInteger, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    _id(),
    _ref("user_id", "users"),
    _ref("project_id", "projects", nullable=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),  # of the secret: SHA-256, as it has 256 random bits
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
)

hosts = Table(
    "hosts",
    metadata,
    _id(),
    Column("public_id", Text, nullable=False, unique=True),
    _ref("user_id", "users"),
    Column("name", Text, nullable=False),
    Column("key_hash", Text, nullable=False),
    Column("facts", Text, nullable=False),  # wire.native.HostFacts
    _word("state", "active"),  # active, suspended, banned, detached
    _word("ban_reason", ""),
    _amount("gflops"),  # of one processor, as believed
    *_earnings(),
    Column("created_at", Float, nullable=False),
    Column("last_seen_at", Float, nullable=False),
    _count("tasks_done"),
    _count("tasks_failed"),
    Index(None, "user_id"),
)

project_files = Table(
    "project_files",
    metadata,
    Column("project_id", Id, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Index(None, "digest"),
)

images = Table(
    "images",
    metadata,
    _id(),
    _ref("project_id", "projects"),
    Column("reference", Text, nullable=False),
    Column("digest", Text, nullable=False),  # of the index, or of the only manifest
    Column("platforms", Text, nullable=False),  # {"linux/amd64": manifest digest}
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("project_id", "reference", "digest"),
)

image_blobs = Table(
    "image_blobs",
    metadata,
    Column("image_id", Id, ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Index(None, "digest"),
)

# What trust is earned with: a runner and an image repository, over all tags.
apps = Table(
    "apps",
    metadata,
    _id(),
    Column("runner", Text, nullable=False),
    Column("repository", Text, nullable=False),
    _amount("confirmed_gflop"),  # the work that confirmed results were credited for
    _amount("confirmed_seconds"),  # the processor time they took
    UniqueConstraint("runner", "repository"),
)

# lifecycle.trust.Standing, column by column.
host_apps = Table(
    "host_apps",
    metadata,
    Column("host_id", Id, ForeignKey("hosts.id", ondelete="CASCADE"), primary_key=True),
    Column("app_id", Id, ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True),
    Column("consecutive_valid", Integer, nullable=False),
    Column("error_rate", Float, nullable=False),
    Column("allowance", Integer, nullable=False),
    Column("day", Integer, nullable=False),
    Column("sent_today", Integer, nullable=False),
    Column("troubles", Integer, nullable=False),
    Column("trouble_at", Float, nullable=False),
    Column("rest_until", Float, nullable=False),
    Column("failing_batch", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("failing_until", Float, nullable=False),
    Column("turnaround_seconds", Float, nullable=False),
    Column("valid", BigInteger, nullable=False),
    Column("wrong", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
)

# What each valid task earned. The totals of hosts, users and projects are the sums of these.
credit_grants = Table(
    "credit_grants",
    metadata,
    Column("task_id", Id, primary_key=True, autoincrement=False),
    Column("host_id", Id, nullable=False),
    Column("user_id", Id),
    Column("project_id", Id, nullable=False),
    Column("credit", BigInteger, nullable=False),  # in millionths of a cobblestone
    Column("at", Float, nullable=False),
)

# Jobs done again because the host that did them alone was banned.
rechecks = Table(
    "rechecks",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("by_job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, unique=True),
)

# All ready tasks of one project that ask the same of a host stand in one queue.
queues = Table(
    "queues",
    metadata,
    _id(),
    _ref("project_id", "projects"),
    Column("shape", Text, nullable=False),  # lifecycle.dispatch.Shape
    _count("ready"),
    UniqueConstraint("project_id", "shape"),
    Index("ix_queues_ready", "id", sqlite_where=text("ready > 0"), postgresql_where=text("ready > 0")),
)

batches = Table(
    "batches",
    metadata,
    _id(),
    _ref("project_id", "projects"),
    _ref("user_id", "users"),
    _ref("queue_id", "queues"),
    _ref("image_id", "images", nullable=True),
    Column("name", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("spec", Text, nullable=False),  # wire.native.Spec
    Column("policy", Text, nullable=False),  # lifecycle.model.Policy
    Column("priority", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    _count("job_count"),
    _count("waiting"),
    _count("running"),
    _count("checking"),
    _count("done"),
    _count("failed"),
    _count("cancelled"),
    Column("app_id", Id, ForeignKey("apps.id")),
    _amount("lone_gflops"),  # the most a result is credited by that no other bears out
    Column("eta_at", Float),  # when it may end, as it looks now
    Column("idempotency_key", Text),
    Column("request_digest", Text, nullable=False),
    UniqueConstraint("project_id", "idempotency_key"),
    Index(None, "project_id", "id"),
    Index(None, "image_id"),
    Index(
        "ix_batches_going_on",
        "id",
        sqlite_where=text("ended_at IS NULL"),
        postgresql_where=text("ended_at IS NULL"),
    ),
)

batch_files = Table(
    "batch_files",
    metadata,
    Column("batch_id", Id, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", Text, primary_key=True),
    Index(None, "digest"),
)

jobs = Table(
    "jobs",
    metadata,
    _id(),
    _ref("batch_id", "batches"),
    Column("position", Integer, nullable=False),  # in its batch, from 1
    Column("state", Text, nullable=False),
    Column("quorum", Integer, nullable=False),
    Column("target_tasks", Integer, nullable=False),
    Column("reasons", Text, nullable=False),  # words, with a blank between them
    Column("canonical_attempt", Integer),
    Column("hand_over", Text, nullable=False),
    Column("files", Text, nullable=False),
    Column("decided_at", Float),
    Column("choice", Text),  # wire.native.JobChoice, where the job differs from the batch's others
    Column("alike", Text),  # the class of hosts its copies go to
    Column("expect", Text),  # the digest of its output, where it is known beforehand
    UniqueConstraint("batch_id", "position"),
    Index(
        "ix_jobs_hand_over",
        "id",
        sqlite_where=text("hand_over = 'ready'"),
        postgresql_where=text("hand_over = 'ready'"),
    ),
    Index(
        "ix_jobs_released", "id", sqlite_where=text("files = 'released'"), postgresql_where=text("files = 'released'")
    ),
    Index(
        "ix_jobs_checking", "id", sqlite_where=text("state = 'checking'"), postgresql_where=text("state = 'checking'")
    ),
    Index(  # an output that came too late to be compared before the hand-over
        "ix_jobs_late",
        "id",
        sqlite_where=text("hand_over = 'done' AND files = 'kept'"),
        postgresql_where=text("hand_over = 'done' AND files = 'kept'"),
    ),
)

# What a validator said of two attempts that do not agree, or (other is -1) of one that it cannot read.
check_notes = Table(
    "check_notes",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("other", Integer, primary_key=True, autoincrement=False),
    Column("words", Text, nullable=False),
)

# Jobs on which a validator failed: when it is tried again.
check_delays = Table(
    "check_delays",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("tries", Integer, nullable=False),
    Column("until", Float, nullable=False),
    Column("words", Text, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    _id(),
    _ref("job_id", "jobs"),
    Column("attempt", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("validity", Text, nullable=False),
    Column("queue_id", Id, nullable=False),
    Column("rank", Integer, nullable=False),  # lowest first: minus the priority, and one less for copies made later
    Column("host_id", Id),
    Column("user_id", Id),
    Column("sent_at", Float),
    Column("deadline_at", Float),
    Column("received_at", Float),
    Column("exit_code", Integer),
    Column("cause", Text),
    Column("output_digest", Text),
    Column("output_bytes", BigInteger),
    Column("wall_seconds", Float),
    Column("cpu_seconds", Float),
    Column("memory_bytes", BigInteger),
    Index("ix_tasks_job", "job_id"),
    Index(
        "ix_tasks_ready",
        "queue_id",
        "rank",
        "id",
        sqlite_where=text("state = 'ready'"),
        postgresql_where=text("state = 'ready'"),
    ),
    Index(
        "ix_tasks_deadline",
        "deadline_at",
        sqlite_where=text("state = 'in_progress'"),
        postgresql_where=text("state = 'in_progress'"),
    ),
    Index(
        "ix_tasks_host",
        "host_id",
        sqlite_where=text("state = 'in_progress'"),
        postgresql_where=text("state = 'in_progress'"),
    ),
)

# What a host said last of a task it holds.
progress = Table(
    "progress",
    metadata,
    Column("task_id", Id, primary_key=True, autoincrement=False),
    Column("phase", Text, nullable=False),
    Column("fraction", Float),
    Column("at", Float, nullable=False),
)

# Results tars small enough to travel inside a report stay here until they are handed over: durable with the commit itself.
outputs = Table(
    "outputs",
    metadata,
    Column("task_id", Id, primary_key=True, autoincrement=False),
    Column("bytes", LargeBinary, nullable=False),
)

logs = Table(
    "logs",
    metadata,
    Column("task_id", Id, primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),  # offset of the first byte in the task's log
    Column("bytes", LargeBinary, nullable=False),
)

# Ranges of numbers for rows that are made many at a time.
counters = Table(
    "counters", metadata, Column("name", Text, primary_key=True), Column("next", BigInteger, nullable=False)
)

# --- stock BOINC clients ------------------------------------------------------------------------------------------

# A person's account as BOINC clients know it. The authenticator is kept plain: it is told again to whoever has the password.
boinc_accounts = Table(
    "boinc_accounts",
    metadata,
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("authenticator", Text, nullable=False, unique=True),
    Column("cross_project_id", Text, nullable=False),
    _word("venue", ""),
    _word("project_preferences", ""),
    _word("global_preferences", ""),
    Column("global_preferences_at", Float, nullable=False, server_default="0"),
)

boinc_hosts = Table(
    "boinc_hosts",
    metadata,
    Column("host_id", Id, ForeignKey("hosts.id", ondelete="CASCADE"), primary_key=True),
    _count("seqno"),  # of its calls; a lower one than before: its data folder was copied
    Column("cpid", Text, nullable=False),  # MD5 of what the client calls itself and the owner's address
    _word("engine", "unknown"),  # whether containers run there: unknown, works, missing
    Column("engine_at", Float, nullable=False, server_default="0"),
    _word("venue", ""),
    Index(None, "cpid"),
)

boinc_apps = Table(
    "boinc_apps",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("title", Text, nullable=False),
    Column("outputs", Text, nullable=False),  # names of the files a task may bring back, as JSON
    Column("created_at", Float, nullable=False),
)

boinc_versions = Table(
    "boinc_versions",
    metadata,
    _id(),
    _ref("app_id", "boinc_apps"),
    Column("platform", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("plan_class", Text, nullable=False),
    Column("document", Text, nullable=False),  # store.boinc.VersionFiles
    Column("created_at", Float, nullable=False),
    UniqueConstraint("app_id", "platform", "version", "plan_class"),
)

boinc_version_files = Table(
    "boinc_version_files",
    metadata,
    Column("version_id", Id, ForeignKey("boinc_versions.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", Text, primary_key=True),
    Index(None, "digest"),
)

# BOINC names content by MD5, and a large layer is not read again for that.
content_md5s = Table(
    "content_md5s",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("md5", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
)

# Messages that running tasks sent; a client sends one again until it is acknowledged.
trickles = Table(
    "trickles",
    metadata,
    Column("task_id", Id, primary_key=True, autoincrement=False),
    Column("sent_at", BigInteger, primary_key=True, autoincrement=False),
    Column("host_id", Id, nullable=False),
    Column("variety", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("received_at", Float, nullable=False),
)
