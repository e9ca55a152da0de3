"""What can go wrong between a program and a site, in words that say what happened, why, and what to do next."""

import re

from distributio.wire.native import Problem


class ClientError(Exception):
    """Something a caller of this package can catch: every error it raises on purpose is one."""


class SiteError(ClientError):
    """The site answered, and refused. `problem` is its answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(_sentence(problem))
        self.problem = problem

    @property
    def code(self) -> str:
        """The reason code, for programs."""
        return self.problem.code

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status


class SiteUnreachable(ClientError):
    """Nobody answered, though we asked again for a while."""

    def __init__(self, url: str, why: str, seconds: float) -> None:
        waited = f", for {seconds:.0f} s" if seconds >= 1 else ""
        super().__init__(
            f"The site {url} does not answer{waited}: {why}. "
            "Check the address and your network; a site on this machine is started with `distributio serve`."
        )
        self.url = url


class TransferError(ClientError):
    """Bytes did not arrive as they were sent."""


def _sentence(problem: Problem) -> str:
    parts = [problem.title.rstrip(".") or f"The site answered {problem.status}"]
    if problem.detail:
        parts.append(problem.detail)
    parts.extend(error for error in problem.errors if error != problem.detail)
    if problem.advice:
        parts.append(problem.advice)
    return " ".join(map(_as_sentence, parts))


def _as_sentence(text: str) -> str:
    # What begins with a name, as of an image, keeps it as it is.
    if re.match(r"[a-z]+ ", text):
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?", "!", ":")) else text + "."
