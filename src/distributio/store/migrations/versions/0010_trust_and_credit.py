"""trust and credit"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_EARNERS = ("users", "projects", "hosts")


def _amount(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Float(), server_default="0", nullable=False)


def upgrade() -> None:
    op.create_table(
        "apps",
        sa.Column("id", _ID, nullable=False),
        sa.Column("runner", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        _amount("confirmed_gflop"),
        _amount("confirmed_seconds"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_apps")),
        sa.UniqueConstraint("runner", "repository", name=op.f("uq_apps_runner_repository")),
    )
    op.create_table(
        "host_apps",
        sa.Column("host_id", _ID, nullable=False),
        sa.Column("app_id", _ID, nullable=False),
        sa.Column("consecutive_valid", sa.Integer(), nullable=False),
        sa.Column("error_rate", sa.Float(), nullable=False),
        sa.Column("allowance", sa.Integer(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("sent_today", sa.Integer(), nullable=False),
        sa.Column("troubles", sa.Integer(), nullable=False),
        sa.Column("trouble_at", sa.Float(), nullable=False),
        sa.Column("rest_until", sa.Float(), nullable=False),
        sa.Column("failing_batch", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failing_until", sa.Float(), nullable=False),
        sa.Column("turnaround_seconds", sa.Float(), nullable=False),
        sa.Column("valid", sa.BigInteger(), nullable=False),
        sa.Column("wrong", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["app_id"], ["apps.id"], name=op.f("fk_host_apps_app_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_host_apps_host_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("host_id", "app_id", name=op.f("pk_host_apps")),
    )
    op.create_table(
        "credit_grants",
        sa.Column("task_id", _ID, autoincrement=False, nullable=False),
        sa.Column("host_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=True),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("credit", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_credit_grants")),
    )
    op.create_table(
        "rechecks",
        sa.Column("job_id", _ID, nullable=False),
        sa.Column("by_job_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["by_job_id"], ["jobs.id"], name=op.f("fk_rechecks_by_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_rechecks_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_rechecks")),
        sa.UniqueConstraint("by_job_id", name=op.f("uq_rechecks_by_job_id")),
    )
    for table in _EARNERS:
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("credit", sa.BigInteger(), server_default="0", nullable=False))
            batch_op.add_column(_amount("credit_kept"))
    with op.batch_alter_table("users", schema=None) as batch_op:
        batch_op.add_column(sa.Column("shows_name", sa.Boolean(), server_default="0", nullable=False))
    with op.batch_alter_table("hosts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("ban_reason", sa.Text(), server_default="", nullable=False))
        batch_op.add_column(_amount("gflops"))
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("alike", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("expect", sa.Text(), nullable=True))
    with op.batch_alter_table("batches", schema=None) as batch_op:
        batch_op.add_column(sa.Column("app_id", _ID, nullable=True))
        batch_op.add_column(_amount("lone_gflops"))
        batch_op.add_column(sa.Column("eta_at", sa.Float(), nullable=True))
        batch_op.create_foreign_key(op.f("fk_batches_app_id"), "apps", ["app_id"], ["id"])
    _name_apps()


def _name_apps() -> None:
    """Batches that are here already get the app they are of."""
    connection = op.get_bind()
    batches = connection.execute(
        sa.text("SELECT batches.id, spec, reference FROM batches LEFT JOIN images ON images.id = batches.image_id")
    ).all()
    known: dict[tuple[str, str], int] = {}
    for batch, spec, reference in batches:
        said = json.loads(spec)
        app = (said.get("runner", "container"), _repository(reference or said.get("image", "")))
        if app not in known:
            known[app] = len(known) + 1
            connection.execute(
                sa.text("INSERT INTO apps (runner, repository) VALUES (:runner, :repository)"),
                {"runner": app[0], "repository": app[1]},
            )
        connection.execute(
            sa.text(
                "UPDATE batches SET app_id = (SELECT id FROM apps WHERE runner = :runner AND repository = :repository) "
                "WHERE id = :batch"
            ),
            {"runner": app[0], "repository": app[1], "batch": batch},
        )


def _repository(reference: str) -> str:
    name = reference.partition("@")[0]
    before, colon, tag = name.rpartition(":")
    return before if colon and "/" not in tag else name


def downgrade() -> None:
    with op.batch_alter_table("batches", schema=None) as batch_op:
        batch_op.drop_constraint(op.f("fk_batches_app_id"), type_="foreignkey")
        for name in ("eta_at", "lone_gflops", "app_id"):
            batch_op.drop_column(name)
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        for name in ("expect", "alike"):
            batch_op.drop_column(name)
    with op.batch_alter_table("hosts", schema=None) as batch_op:
        for name in ("gflops", "ban_reason"):
            batch_op.drop_column(name)
    with op.batch_alter_table("users", schema=None) as batch_op:
        batch_op.drop_column("shows_name")
    for table in _EARNERS:
        with op.batch_alter_table(table, schema=None) as batch_op:
            for name in ("credit_kept", "credit"):
                batch_op.drop_column(name)
    for table in ("rechecks", "credit_grants", "host_apps", "apps"):
        op.drop_table(table)
