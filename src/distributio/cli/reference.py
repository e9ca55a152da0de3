"""The reference of all commands, made from the commands themselves."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from distributio.cli import docker_options, exits, jobfile, main, refused_options, show
from distributio.cli.docker_like import DockerLike, DockerLikeMany
from distributio.cli.exits import Stop

_HEADER = """# Commands

<!-- Made by `python -m distributio.cli.documents --write` from the commands' own help: change that, then run it. -->
"""

_JOB_FILE = """A job file is TOML. `distributio submit --schema` prints its JSON schema, for editors. The smallest:

    [job]
    image = "python:alpine"
    command = ["python", "-c", "print({n} ** 2)"]

    [many]
    matrix = { n = "1..10" }
"""


def docs(
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Write to this file instead.")] = "",
) -> None:
    """Print the reference of all commands as Markdown."""
    text = markdown()
    if not out:
        show.line(text.rstrip("\n"))
        return
    try:
        with open(out, "w", encoding="utf-8") as target:
            target.write(text)
    except OSError as error:
        raise Stop(f"{out} cannot be written: {error.strerror}. Choose another file.") from error


def markdown() -> str:
    """The whole page."""
    parts = [_HEADER, "## Exit codes\n", _table(("code", "meaning"), main.exit_code_lines()), exits.RUN_NOTE + "\n"]
    for command in main.available():
        parts += _sections(main.load(command), f"distributio {command.name}", None)
    parts += ["## Options of docker run that are refused\n", *_refused()]
    parts += ["## Job files\n", _JOB_FILE, *_job_file()]
    return "\n".join(parts).rstrip() + "\n"


def _sections(command: Any, path: str, parent: Any) -> list[str]:
    context = command.make_context(path, ["--help"], parent=parent, resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"## {path}\n", f"    {usage}\n"]
    if command.help:
        parts.append(_paragraphs(command.help))
    parts += _options(command, context)
    for name in getattr(command, "commands", {}):
        parts += _sections(command.get_command(context, name), f"{path} {name}", context)
    return parts


def _options(command: Any, context: Any) -> list[str]:
    if isinstance(command, DockerLikeMany):
        rows = _code_first(docker_options.help_rows("many"))
        return [_table(("option", "meaning"), rows), "And every option of `distributio run`.\n"]
    if isinstance(command, DockerLike):
        return [
            f"**{title}**\n\n" + _table(("option", "meaning"), _code_first(docker_options.help_rows(*sections)))
            for title, sections in command.sections
        ]
    records = [param.get_help_record(context) for param in command.get_params(context)]
    rows = [record for record in records if record is not None and not record[0].startswith("--help")]
    return [_table(("argument or option", "meaning"), _code_first(rows))] if rows else []


def _refused() -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in refused_options.REFUSED.items():
        by_reason.setdefault(reason, []).append(f"`{name}`")
    return [_table(("options", "why, and what to do"), [(" ".join(names), why) for why, names in by_reason.items()])]


def _job_file() -> list[str]:
    tables = jobfile.schema()["$defs"]
    parts = []
    for name, about in tables["JobFile"]["properties"].items():
        many = about.get("type") == "array"
        table = tables[(about["items"] if many else about)["$ref"].rpartition("/")[2]]
        rows = [(f"`{field}`", _default(fact), fact["description"]) for field, fact in table["properties"].items()]
        title = f"**[[{name}]]**" if many else f"**[{name}]**"
        parts += [f"{title} {table['description']}\n", _table(("field", "default", "meaning"), rows)]
    return parts


def _default(fact: dict[str, Any]) -> str:
    value = fact.get("default")
    return f"`{json.dumps(value)}`" if value not in (None, "", [], {}) else ""


def _code_first(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"`{name}`", meaning) for name, meaning in rows]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")) + "\n"
