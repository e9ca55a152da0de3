"""Whether two JSON documents say the same, whatever their layout and the order of their keys."""

import json
from collections.abc import Collection
from typing import Any

from distributio.validators.numbers import Differs, Tally
from distributio.validators.verdicts import Output, Unreadable


def read(output: Output, name: str) -> Any:
    """A file's document. Raises Unreadable."""
    try:
        return json.loads(output.text(name), object_pairs_hook=_object)
    except RecursionError:
        raise Unreadable(f"{name}: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"{name}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except _Twice as error:
        raise Unreadable(f"{name}: the key {str(error)[:80]!r} is there twice in one object") from None


class _Twice(ValueError):
    """A key that is there twice means different things to different readers."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _Twice(key)
        made[key] = value
    return made


def compare(a: Any, b: Any, where: str, tally: Tally, ignored: Collection[str] = ()) -> None:
    """Compare two documents; keys in `ignored` are left out at any depth. Raises Differs."""
    if _is_number(a) and _is_number(b):
        tally.compare(a, b, where)
    elif isinstance(a, dict) and isinstance(b, dict):
        left, right = a.keys() - set(ignored), b.keys() - set(ignored)
        for key in sorted(left ^ right):
            which = "first" if key in left else "second"
            raise Differs(f"{where}: only the {which} output has the key {key[:80]!r}")
        for key in sorted(left):
            compare(a[key], b[key], f"{where}.{key[:80]}", tally, ignored)
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            raise Differs(f"{where}: {len(a)} and {len(b)} elements")
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            compare(one, other, f"{where}[{index}]", tally, ignored)
    elif type(a) is not type(b) or a != b:
        raise Differs(f"{where}: {_shown(a)} and {_shown(b)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
