"""How the tables come from one shape to the next: Alembic's steps, each taken whole or not at all."""

from pathlib import Path

import sqlalchemy


class UnknownStep(Exception):
    """The tables are at a step that this release does not have."""


def take(engine: sqlalchemy.Engine, revision: str) -> None:
    """Take the steps to `revision`, forward if it is "head", else back."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        if engine.dialect.name == "sqlite":
            # A table that is made anew is dropped first, which must not take what refers to it along.
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            if revision == "head":
                command.upgrade(config, revision)
            else:
                command.downgrade(config, revision)
        except CommandError as error:
            raise UnknownStep(str(error)) from error
        finally:
            connection.invalidate()  # it is not as the others are


def current(engine: sqlalchemy.Engine) -> str | None:
    """The step the tables are at."""
    from alembic.runtime.migration import MigrationContext

    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()
