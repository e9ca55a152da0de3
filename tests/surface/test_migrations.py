"""Steps between the shapes of the tables go forward and back on both databases, and end where the schema says."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic import autogenerate
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from distributio.store import schema
from distributio.store.database import Database, StoreError

SCRIPTS = Path(schema.__file__).parent / "migrations"


def revisions() -> list[str]:
    """All steps, the first first."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def shape(database: Database) -> dict[str, Any]:
    """Everything an inspector can say of a database's tables."""
    inspector = sqlalchemy.inspect(database.engine)
    return {
        table: {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column.get("default"))
                for column in inspector.get_columns(table)
            },
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "foreign": sorted(
                (each["constrained_columns"], each["referred_table"], each["options"].get("ondelete"))
                for each in inspector.get_foreign_keys(table)
            ),
            "unique": sorted(each["column_names"] for each in inspector.get_unique_constraints(table)),
            "indexes": sorted(
                (each["name"], each["column_names"], str(_where(each))) for each in inspector.get_indexes(table)
            ),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def _where(index: Any) -> Any:
    options = index.get("dialect_options", {})
    found = [options[name] for name in ("postgresql_where", "sqlite_where") if options.get(name) is not None]
    return found[0] if found else ""


@pytest.fixture
def empty(empty_url: str) -> Any:
    database = Database(empty_url)
    yield database
    database.close()


def test_the_steps_are_one_road() -> None:
    assert len(revisions()) == len(list((SCRIPTS / "versions").glob("*.py")))
    assert revisions() == sorted(revisions())


def test_forward_back_and_forward_again_ends_as_the_schema_says(empty: Database) -> None:
    steps = revisions()
    empty.migrate()
    whole = shape(empty)
    assert empty.revision() == steps[-1]
    for before in [*steps[-2::-1], "base"]:
        empty.migrate(before)
    assert shape(empty) == {}
    assert empty.revision() is None
    empty.migrate()
    assert shape(empty) == whole
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert autogenerate.compare_metadata(context, schema.metadata) == []


def test_migrated_tables_are_those_that_the_schema_makes(empty: Database, tmp_path: Path) -> None:
    empty.migrate()
    migrated = shape(empty)
    empty.migrate("base")
    schema.metadata.create_all(empty.engine)
    assert migrated == shape(empty)


def test_each_step_keeps_what_is_there(empty: Database) -> None:
    empty.migrate()
    with empty.begin() as transaction:
        transaction.insert("users", name="ada", is_operator=False, created_at=1.0)
        transaction.insert("projects", name="pulsar", enabled=True, created_at=1.0)
        transaction.run("INSERT INTO memberships (user_id, project_id, role) VALUES (1, 1, 'member')")
        transaction.insert_many("counters", ("name", "next"), [("jobs", 5)])
    first = revisions()[0]
    empty.migrate(first)
    empty.migrate()
    with empty.read() as transaction:
        assert transaction.rows("SELECT name FROM users") == [("ada",)]
        assert transaction.rows("SELECT user_id, project_id, role FROM memberships") == [(1, 1, "member")]
        assert transaction.rows("SELECT name, next FROM counters") == [("jobs", 5)]


def test_a_step_that_fails_leaves_nothing_half_done(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    made: list[str] = []
    create = op.create_table

    def fail_later(name: str, *words: Any, **more: Any) -> Any:
        made.append(name)
        if len(made) == 7:
            raise RuntimeError("the power went")
        return create(name, *words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_table", fail_later)
        with pytest.raises(RuntimeError, match="the power went"):
            empty.migrate()
    assert len(made) == 7
    assert shape(empty) == {}
    empty.migrate()
    assert empty.revision() == revisions()[-1]


def test_foreign_keys_are_kept_after_migrating(empty: Database) -> None:
    empty.migrate()
    with pytest.raises(StoreError), empty.begin() as transaction:
        transaction.run("INSERT INTO memberships (user_id, project_id, role) VALUES (77, 77, 'member')")
