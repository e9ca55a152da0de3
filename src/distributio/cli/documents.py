"""The pages of the reference that are made from the program: which they are, what they say, and whether they are stale.

`python -m distributio.cli.documents` names stale pages; with `--write` it writes them anew.
"""

import argparse
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path

from distributio.cli import reference, service_pages
from distributio.cli.markdown import MADE_BY, page, table
from distributio.lifecycle import advance
from distributio.lifecycle.model import (
    FilesState,
    HandOver,
    Job,
    JobState,
    Outcome,
    Policy,
    Reason,
    Task,
    TaskState,
    Validity,
)
from distributio.lifecycle.reasons import REASONS, Kind, Who
from distributio.lifecycle.roads import explore

Edge = tuple[str, str, str]  # from, event, to

# Small jobs whose roads, taken together, have every step there is.
_EXPLORED: tuple[Policy, ...] = (
    Policy(quorum=1, target_tasks=2, max_tasks=3, max_failures=1, max_errors=1),
    Policy(quorum=2, target_tasks=2, max_tasks=3, max_errors=1, max_successes=1),
    Policy(quorum=2, target_tasks=2, max_tasks=3, max_errors=0, max_successes=1, validator="own"),
)

_KINDS: dict[Kind, str] = {
    Kind.WAITING: "Why a task waits, or a host has no work",
    Kind.ENDED: "Why a task brought no output",
    Kind.GIVEN_UP: "Why a job was given up",
    Kind.REFUSED: "Why a request was refused",
}
_WHO: dict[Who, str] = {
    Who.SUBMITTER: "who submits",
    Who.LENDER: "who lends the host",
    Who.OPERATOR: "the operator",
    Who.TIME: "time",
}


# --- pages ------------------------------------------------------------------------------------------------------


def lifecycle() -> str:
    """States, steps and rules of a job."""
    job_edges, task_edges = _edges()
    words: Sequence[tuple[type[StrEnum], str, str]] = (
        (JobState, "A job in one word", "Derived from everything else, for people."),
        (TaskState, "Where a task stands", "A task is one copy of a job for one host."),
        (Outcome, "How a task ended", ""),
        (Validity, "What comparing outputs has said of a task", ""),
        (Reason, "Why a job was given up", "A job may have several reasons."),
        (HandOver, "Whether a job has been handed over", ""),
        (FilesState, "Whether what hosts sent is still kept", ""),
    )
    parts = [
        "# The life cycle of a job",
        MADE_BY,
        "Something happens to a job: a copy is sent, a host reports, a deadline passes. The event is recorded, and then"
        " the rules below are applied in order, once. The steps shown are all those met when every road of small jobs"
        " is followed to its end.",
        "## A job's roads",
        _diagram(job_edges, ends=("done", "failed", "cancelled")),
        _edge_table(job_edges),
        "## A task's roads",
        "What a task that is over became is its outcome.",
        _diagram(task_edges, start="ready"),
        _edge_table(task_edges),
        "## The rules, in order",
        "\n".join(f"{n}. **{_words(rule.__name__)}.** {_docstring(rule)}" for n, rule in enumerate(advance.RULES, 1)),
        "## The events",
        table(("event", "what it records"), [(_words(event.__name__), _docstring(event)) for event in _EVENTS]),
        "## Words",
    ]
    for enum, title, note in words:
        parts += [f"### {title}", *([note] if note else []), table(("word", "meaning"), _meanings(enum))]
    return page(parts)


def reasons() -> str:
    """Every reason code, with what to do."""
    parts = [
        "# Reasons",
        MADE_BY,
        "Every waiting job, every task that brought no output, every refusal and every host without work says why,"
        " with one of these codes. Codes never change; their words may.",
    ]
    for kind, title in _KINDS.items():
        rows = [
            (f"`{code}`", text.sentence, text.advice, _WHO[text.who_can_change])
            for code, text in REASONS.items()
            if text.kind is kind
        ]
        parts += [f"## {title}", table(("code", "what it means", "what to do", "who can change it"), rows)]
    return page(parts)


# A page's place below the repository, and the function that returns its text.
PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/lifecycle.md": lifecycle,
    "docs/reference/reasons.md": reasons,
    "docs/reference/commands.md": reference.markdown,
    "docs/reference/settings.md": service_pages.settings,
    "docs/reference/errors.md": service_pages.errors,
    "docs/reference/api.md": service_pages.api,
}

_EVENTS = (
    advance.sent,
    advance.reported,
    advance.validated,
    advance.cancelled,
    advance.handed_over,
    advance.files_deleted,
)


# --- keeping them -----------------------------------------------------------------------------------------------


def stale(root: Path) -> list[str]:
    """The pages below `root` that are missing or do not say what the program says."""
    return [path for path, text in PAGES.items() if _read(root / path) != text()]


def write(root: Path) -> list[str]:
    """Write the stale pages anew; return which they were."""
    written = stale(root)
    for path in written:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(PAGES[path](), encoding="utf-8")
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Name the stale pages, or write them."""
    parser = argparse.ArgumentParser(prog="python -m distributio.cli.documents", description=stale.__doc__)
    parser.add_argument("--write", action="store_true", help="write them anew")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: this folder)")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        for path in write(chosen.root):
            sys.stdout.write(f"{path}: written\n")
        return 0
    found = stale(chosen.root)
    for path in found:
        sys.stdout.write(f"{path}: stale; write it anew with --write\n")
    return 1 if found else 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


# --- what the roads show ----------------------------------------------------------------------------------------


@functools.cache
def _edges() -> tuple[list[Edge], list[Edge]]:
    jobs: set[Edge] = set()
    tasks: set[Edge] = set()
    for policy in _EXPLORED:
        for steps in explore(policy).steps.values():
            for step in steps:
                event = _event(step.event)
                before, after = step.before.job, step.after.job
                if before.state is not after.state:
                    jobs.add((before.state, event, after.state))
                tasks |= set(_task_edges(before, event, after))
    return _sorted(jobs, list(JobState)), _sorted(tasks, [*TaskState, *Outcome])


def _task_edges(before: Job, event: str, after: Job) -> Iterable[Edge]:
    for old, new in zip(before.tasks, after.tasks, strict=False):
        one, other = _stand(old), _stand(new)
        if one != other:
            yield one, "the job is decided" if new.outcome is Outcome.NOT_NEEDED else event, other


def _stand(task: Task) -> str:
    return str(task.outcome if task.state is TaskState.OVER else task.state)


def _event(event: str) -> str:
    # Which of two outputs came back is a matter of the search, and says nothing to a reader.
    word = re.sub(r"^(late: )?success [ab]$", r"\1success", event)
    return f"late {word.removeprefix('late: ')}" if word.startswith("late: ") else word


def _sorted(edges: set[Edge], states: Sequence[str]) -> list[Edge]:
    places = [str(state) for state in states]
    return sorted(edges, key=lambda edge: (places.index(edge[0]), places.index(edge[2]), edge[1]))


def _joined(edges: Iterable[Edge]) -> dict[tuple[str, str], list[str]]:
    joined: dict[tuple[str, str], list[str]] = {}
    for one, event, other in edges:
        joined.setdefault((one, other), []).append(event)
    return joined


# --- Markdown ---------------------------------------------------------------------------------------------------


def _diagram(edges: Iterable[Edge], start: str = "waiting", ends: Iterable[str] = ()) -> str:
    lines = ["stateDiagram-v2", f"    [*] --> {start}"]
    lines += [f"    {one} --> {other}: {', '.join(events)}" for (one, other), events in _joined(edges).items()]
    lines += [f"    {end} --> [*]" for end in ends]
    return "\n".join(["```mermaid", *lines, "```"])


def _edge_table(edges: Iterable[Edge]) -> str:
    rows = [(f"`{one}`", f"`{other}`", ", ".join(events)) for (one, other), events in _joined(edges).items()]
    return table(("from", "to", "when"), rows)


def _meanings(enum: type[StrEnum]) -> list[tuple[str, str]]:
    """The members with the comments beside them, where words are explained; one without speaks for itself."""
    source = inspect.getsource(enum)
    rows = []
    for member in enum:
        found = re.search(rf'{member.name} = "{re.escape(member.value)}"(?:  # (.*))?$', source, re.MULTILINE)
        rows.append((f"`{member.value}`", _sentence(found[1] or "") if found else ""))
    return rows


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def _docstring(thing: Callable[..., object]) -> str:
    return " ".join((thing.__doc__ or "").split())


def _words(name: str) -> str:
    words = name.replace("_", " ")
    return words[0].upper() + words[1:]


if __name__ == "__main__":
    sys.exit(main())
