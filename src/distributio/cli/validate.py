"""`distributio validate`: whether two outputs agree, why, and what a validator would not catch."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from distributio.cli import show
from distributio.cli.exits import ExitCode, Stop
from distributio.cli.show import Column, Output, OutputOption

if TYPE_CHECKING:
    from distributio.validators.sandbox import Sandbox
    from distributio.validators.worker import Setup

TAR = "results.tar"
_MOST_MUTATED = 1 << 30


class Tried(Struct, kw_only=True):
    """A changed copy, and what the validator says of it beside the output it was made from."""

    change: str
    file: str
    caught: bool
    words: str


class Comparison(Struct, kw_only=True):
    """What a validator says of two outputs."""

    validator: str
    a: str
    b: str
    agrees: bool
    words: str
    mutants: list[Tried] = []


_COLUMNS = (
    Column("CHANGE", lambda tried: tried.change),
    Column("FILE", lambda tried: tried.file),
    Column("CAUGHT", lambda tried: "yes" if tried.caught else "NO"),
    Column("THE VALIDATOR SAYS", lambda tried: show.shortened(tried.words, 100)),
)


def validate(
    a: Annotated[Path, typer.Argument(metavar="A", help="An output: a folder, a results.tar, or a folder with one.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    validator: Annotated[
        str,
        typer.Option(
            "--validator", metavar="SPEC", help="NAME:OPTION=VALUE,... or a file of yours, FILE.py:OPTION=VALUE."
        ),
    ] = "exact",
    mutate: Annotated[
        bool, typer.Option("--mutate", help="Try it on changed copies of A, and show what it catches.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="How long one comparison may take.")] = 60.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say whether two outputs agree, as a site would. Ends with 0 if they do, 5 if not."""
    from distributio.validators.sandbox import Sandbox, ValidatorTrouble

    setup = _setup(validator, seconds)
    with _workplace() as folder:
        for place, source in (("a", a), ("b", b)):
            _bring(source, folder / place)
        try:
            with Sandbox(setup, folder) as sandbox:
                said = _compare(sandbox, setup.choice.text, str(a), str(b))
                if mutate:
                    said.mutants = list(_tried(sandbox, folder))
        except ValidatorTrouble as error:
            raise Stop(f"{error}. Mend the validator, or choose another.", ExitCode.JOB_FAILED) from error
    _print(said, output)
    raise typer.Exit(ExitCode.OK if said.agrees else ExitCode.JOB_FAILED)


def _setup(spec: str, seconds: float) -> "Setup":
    from distributio.validators import names
    from distributio.validators.confine import Bounds
    from distributio.validators.worker import Setup

    place, dot, rest = spec.partition(".py")
    own: dict[str, str] = {}
    try:
        if dot:
            own, spec = {"own": Path(f"{place}.py").expanduser().read_text()}, f"own{rest}"
        choice = names.choose(spec, own)
    except OSError as error:
        raise Stop(f"{place}.py cannot be read: {error.strerror}.") from error
    except names.BadValidator as error:
        raise Stop(f"--validator {spec}: {error}.") from error
    if choice.name == names.PROGRAM:
        raise Stop(
            "A program is run by the site, in its container. Run its command here with docker on the two folders."
        )
    return Setup(choice=choice, source=own.get(choice.name, ""), bounds=Bounds(seconds=seconds))


@contextmanager
def _workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="distributio-validate-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def _bring(source: Path, target: Path) -> None:
    """A copy of an output that the validator's process may read."""
    from distributio.validators.unpack import unpack
    from distributio.wire.results_tar import Bounds
    from distributio.wire.tar_blocks import BadResults

    source = source / TAR if (source / TAR).is_file() else source
    try:
        if source.is_dir():
            shutil.copytree(source, target, ignore=_odd)
            _open_up(target)
        else:
            with source.open("rb") as stream:
                unpack(stream, target, Bounds())
    except (OSError, shutil.Error) as error:
        raise Stop(f"{source} cannot be read: {error}. Name a folder of files, or a results.tar.") from error
    except BadResults as error:
        raise Stop(
            f"{source} is not a results.tar as agents write it: {error}. Unpack it and name the folder."
        ) from error


def _odd(folder: str, names: list[str]) -> list[str]:
    places = [(name, Path(folder) / name) for name in names]
    return [name for name, place in places if place.is_symlink() or not (place.is_dir() or place.is_file())]


def _open_up(folder: Path) -> None:
    folder.chmod(0o755)
    for root, folders, files in os.walk(folder):
        for name in folders:
            (Path(root) / name).chmod(0o755)
        for name in files:
            (Path(root) / name).chmod(0o644)


def _compare(sandbox: "Sandbox", spec: str, a: str, b: str) -> Comparison:
    for place, source in (("a", a), ("b", b)):
        verdict = sandbox.check(place)
        if not verdict.good:
            return Comparison(
                validator=spec, a=a, b=b, agrees=False, words=f"{source} cannot be right: {verdict.words}"
            )
    agreement = sandbox.agree("a", "b")
    return Comparison(validator=spec, a=a, b=b, agrees=agreement.agrees, words=agreement.words)


def _tried(sandbox: "Sandbox", folder: Path) -> Iterator[Tried]:
    from distributio.validators import verdicts
    from distributio.validators.mutants import mutants
    from distributio.validators.sandbox import NotLoaded, ValidatorTrouble

    original = verdicts.Output(folder / "a")
    if sum(map(original.size, original.names)) > _MOST_MUTATED:
        raise Stop(f"--mutate copies the output many times; this one is larger than {_MOST_MUTATED >> 30} GiB.")
    copy = folder / "mutant"
    for mutant in mutants(original):
        shutil.copytree(folder / "a", copy)
        for name, content in mutant.files.items():
            if content is None:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(content)
                (copy / name).chmod(0o644)
        try:
            verdict = sandbox.check("mutant")
            agreement = sandbox.agree("a", "mutant") if verdict.good else None
            caught, words = (True, verdict.words) if agreement is None else (not agreement.agrees, agreement.words)
        except NotLoaded:
            raise
        except ValidatorTrouble as error:
            caught, words = True, str(error)
        yield Tried(change=mutant.what, file=mutant.file, caught=caught, words=words)
        shutil.rmtree(copy)


def _print(said: Comparison, output: Output) -> None:
    if output is not Output.TABLE:
        show.one(said, [], output, lambda view: "agree" if view.agrees else "differ")
        return
    show.line(
        f"{'They agree' if said.agrees else 'They differ'} ({said.validator}): {show.clean(said.words) or 'nothing differs'}"
    )
    if said.mutants:
        show.line("")
        show.table([[column.cell(tried) for column in _COLUMNS] for tried in said.mutants], _COLUMNS)
        missed = sum(not tried.caught for tried in said.mutants)
        show.line("")
        show.line(f"{len(said.mutants) - missed} of {len(said.mutants)} changes of {said.a} would be caught.")
