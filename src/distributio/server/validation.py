"""Which validators this site offers: the built-in ones, its own from `validators/NAME.py` in the data folder, and programs where
the operator has named an engine."""

from pathlib import Path

from distributio.lifecycle.model import EXACT
from distributio.server.settings import Settings
from distributio.validators import names
from distributio.validators.confine import Bounds
from distributio.validators.names import BadValidator, Choice

FOLDER = "validators"


class Validators:
    """A site's validators. Its own are read anew each time, so that one can be mended while the site runs."""

    def __init__(self, data: Path, engine: str = "") -> None:
        self._folder = data / FOLDER
        self._engine = engine

    def choose(self, spec: str) -> Choice:
        """What a spec means here, defaults in place. Raises BadValidator."""
        return self.choose_with_source(spec)[0]

    def choose_with_source(self, spec: str) -> tuple[Choice, str]:
        """The same, with the Python text of one of the site's own."""
        if spec == EXACT:
            return Choice(EXACT), ""
        own = names.own_sources(self._folder)
        choice = names.choose(spec, own)
        if choice.name == names.PROGRAM and not self._engine:
            raise BadValidator(
                "program: this site runs no containers itself, so a program cannot decide; use another validator, or ask "
                "the operator to set validator_engine"
            )
        return choice, own.get(choice.name, "") if choice.is_own else ""

    def bounds_of(self, settings: Settings) -> Bounds:
        """What a validator may use here."""
        return Bounds(memory_bytes=settings.validator_memory_bytes, seconds=settings.validator_seconds)
