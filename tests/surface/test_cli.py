"""What must be true of every command: help, JSON, exit codes, a reference, and a start that is quick."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from distributio.cli import exits, main, reference
from distributio.cli.docker_like import DockerLike
from distributio.cli.option_table import OPTIONS

# Commands that start programs rather than ask something.
PROGRAMS = {"serve", "host", "demo", "docs"}


def commands() -> Iterator[tuple[str, Any]]:
    for command in main.available():
        loaded = main.load(command)
        names = getattr(loaded, "commands", {})
        if not names:
            yield command.name, loaded
        for name in names:
            yield f"{command.name} {name}", loaded.get_command(None, name)


def distributio(*words: str, folder: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else ["-m", "distributio.cli.main"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DISTRIBUTIO_")}
    environment |= {"DISTRIBUTIO_CONFIG": str(folder), "HOME": str(folder), "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, *program, *words], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


@pytest.mark.parametrize("name", [command.name for command in main.available()])
def test_every_command_of_the_table_is_there_and_explains_itself(name: str) -> None:
    loaded = main.load(next(command for command in main.available() if command.name == name))
    assert loaded.help


def test_every_command_can_print_json() -> None:
    without = [
        name
        for name, command in commands()
        if name.split()[0] not in PROGRAMS
        and not isinstance(command, DockerLike)
        and not any("--output" in param.opts for param in command.params)
    ]
    assert not without


def test_every_option_has_a_sentence() -> None:
    silent = [
        f"{name} {param.name}"
        for name, command in commands()
        if not isinstance(command, DockerLike)
        for param in command.params
        if not param.hidden and not getattr(param, "help", None)
    ]
    assert not silent
    assert all(option.help.endswith(".") for option in OPTIONS)


def test_the_reference_has_every_command_option_and_exit_code() -> None:
    text = reference.markdown()
    for name, command in commands():
        assert f"## distributio {name}\n" in text
        for param in command.params:
            assert getattr(param, "hidden", False) or all(
                option in text for option in param.opts if option.startswith("--")
            )
    assert all(f"`{name}" in text or f", {name}" in text for option in OPTIONS for name in option.names)
    assert all(f"| {int(code)} |" in text for code in exits.ExitCode)
    assert set(exits.MEANINGS) == set(exits.ExitCode)


def test_help_imports_no_program(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['distributio', '--help']\n"
        "from distributio.cli import main\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'httpx2', 'rich', 'sqlalchemy', 'starlette', 'distributio.sdk', 'distributio.wire', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    answer = distributio(folder=tmp_path, code=code)
    assert answer.stderr == "[]\n"
    assert all(command.name in answer.stdout for command in main.available())


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--version"], 0, ""),
        (["run", "--help"], 0, ""),
        (["submit", "--schema"], 0, ""),
        (["run", "--privileged", "img"], 2, "--privileged"),
        (["run", "--foo", "img"], 2, "no option --foo"),
        (["rnu"], 2, "Did you mean run"),
        (["ps", "--nope"], 2, "--nope"),
        (["ps", "--url", "http://127.0.0.1:9"], 4, "distributio login"),
        (["ps", "--url", "grid"], 2, "http://"),
        (["submit", "gone.toml"], 2, "gone.toml cannot be read"),
        (["results"], 2, "JOB|BATCH"),
    ],
)
def test_mistakes_end_in_words_and_a_documented_code(tmp_path: Path, words: list[str], code: int, says: str) -> None:
    answer = distributio(*words, folder=tmp_path)
    assert answer.returncode == code
    assert says in answer.stderr
    assert "Traceback" not in answer.stderr
    assert bool(answer.stdout) == (code == 0)


def test_the_schema_of_job_files_is_json(tmp_path: Path) -> None:
    assert json.loads(distributio("submit", "--schema", folder=tmp_path).stdout)["$ref"]


def test_no_colour_where_there_is_no_terminal(tmp_path: Path) -> None:
    for words in (["--help"], ["run", "--help"], ["ps", "--nope"], ["docs"]):
        answer = distributio(*words, folder=tmp_path)
        assert "\x1b" not in answer.stdout + answer.stderr


def test_every_typer_application_is_plain() -> None:
    loud = [
        name
        for name, command in commands()
        if isinstance(command, typer.core.TyperCommand) and command.rich_markup_mode is not None
    ]
    assert not loud
