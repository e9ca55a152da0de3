"""The process in which a validator runs: it reads questions from a pipe, answers them, and can die without harm.

The first line it reads names the validator and the bounds; each line after it asks about one output (`a`) or two (`a`, `b`),
named by their folders in the folder it was started in.
"""

import inspect
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from distributio.validators import builtin, confine, verdicts
from distributio.validators.confine import Bounds
from distributio.validators.names import Choice
from distributio.validators.verdicts import MOST_WORDS, Agreement, Output, Verdict


class Setup(Struct, frozen=True, kw_only=True):
    """What a worker is for. `source` is the Python text of a site's own validator."""

    choice: Choice
    source: str = ""
    bounds: Bounds = Bounds()


class Question(Struct, frozen=True, kw_only=True):
    """Is this output good; or, with `b`, do these two agree?"""

    a: str
    b: str = ""


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Yes or no, with words; or the error that the validator's code ended with."""

    yes: bool = False
    words: str = ""
    error: str = ""


def main() -> None:
    """Read the setup, confine this process, answer questions until there are no more."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a validator prints must not be taken for an answer.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    setup = msgspec.json.decode(questions.readline(), type=Setup)
    worn = confine.put_on(setup.bounds, [*_python_folders(), "."])
    try:
        validator = _own(setup) if setup.choice.is_own else builtin.of(setup.choice)
    except BaseException as error:
        _say(answers, Answer(error=_words_of(error)))
        return
    _say(answers, Answer(yes=True, words=", ".join(worn)))
    decoder = msgspec.json.Decoder(Question)
    while line := questions.readline():
        confine.more_time(setup.bounds.seconds)
        _say(answers, _answer(validator, decoder.decode(line)))


def _python_folders() -> list[str]:
    # /etc for the linker's cache; nothing below /proc, /home or /root unless Python itself lives there.
    fixed = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    return [*fixed, sys.prefix, sys.base_prefix, *(path for path in sys.path if path)]


def _say(answers: io.BufferedWriter, answer: Answer) -> None:
    answers.write(msgspec.json.encode(answer) + b"\n")
    answers.flush()


def _answer(validator: builtin.Validator, question: Question) -> Answer:
    try:
        if not question.b:
            verdict = validator.check(Output(Path(question.a)))
            return Answer(yes=verdict.good, words=verdict.words[:MOST_WORDS])
        agreement = validator.agree(Output(Path(question.a)), Output(Path(question.b)))
        return Answer(yes=agreement.agrees, words=agreement.words[:MOST_WORDS])
    except Exception as error:
        return Answer(error=_words_of(error))


def _words_of(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" (line {last[0].lineno} of {Path(last[0].filename).name})" if last else ""
    return f"{type(error).__name__}: {error}{where}"[:MOST_WORDS]


def _own(setup: Setup) -> builtin.Validator:
    """The site's own validator: the functions `agree` and, if it has one, `check` of its file."""
    name = setup.choice.name
    space: dict[str, Any] = {"__name__": f"validators.{name}", "__file__": f"{name}.py"}
    exec(compile(setup.source, f"{name}.py", "exec"), space)
    agree, check = space.get("agree"), space.get("check")
    if not callable(agree):
        raise TypeError(f"{name}.py has no function agree(a, b)")
    options = dict(setup.choice.options)
    takes = {} if check is None else _taken(check, options)

    def checked(output: Output) -> Verdict:
        return _as_verdict(check(output, **takes)) if callable(check) else Verdict.accept()

    return builtin.Validator(checked, lambda a, b: _as_agreement(agree(a, b, **options)))


def _taken(function: Any, options: dict[str, str]) -> dict[str, str]:
    parameters = inspect.signature(function).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}


def _as_verdict(said: object) -> Verdict:
    if isinstance(said, verdicts.Verdict):
        return said
    if isinstance(said, bool):
        return Verdict(said, "" if said else "the validator refuses it")
    raise TypeError(f"check must return a Verdict, not {type(said).__name__}")


def _as_agreement(said: object) -> Agreement:
    if isinstance(said, verdicts.Agreement):
        return said
    if isinstance(said, bool):
        return Agreement(said, "" if said else "the validator says that they differ")
    raise TypeError(f"agree must return an Agreement, not {type(said).__name__}")
