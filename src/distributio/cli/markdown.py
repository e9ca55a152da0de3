"""How made pages look: tables and pages in Markdown."""

from collections.abc import Iterable, Sequence

MADE_BY = "<!-- Made by `python -m distributio.cli.documents --write` from the program: change that, then run it. -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows below a head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(parts: Iterable[str]) -> str:
    """Paragraphs with a line between them."""
    return "\n\n".join(parts) + "\n"
