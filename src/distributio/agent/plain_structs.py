"""The few words of msgspec that the container runner uses, in plain Python.

The program for BOINC clients (boinc_task.py) runs with the host's own Python, where nothing is installed; in it, this file
stands in the place of msgspec. It reads and writes what the real one does, more slowly, and checks types less.
"""

import copy
import dataclasses
import enum
import inspect
import json as _json
import sys
import types
import typing
from typing import Any

field = dataclasses.field
_MUTABLE = (list, dict, set)


class MsgspecError(ValueError):
    """The base of what can go wrong."""


class DecodeError(MsgspecError):
    """This is not JSON."""


class ValidationError(DecodeError):
    """This is JSON of another kind than was asked for."""


class Meta:
    """Bounds of a value; they are the site's business and not checked here."""

    def __init__(self, **bounds: Any) -> None:
        self.bounds = bounds


class Struct:
    """A value with named fields."""

    __encode_names__: typing.ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, *, frozen: bool = False, kw_only: bool = False, **options: Any) -> None:
        for name in inspect.get_annotations(cls):
            default = cls.__dict__.get(name)
            if isinstance(default, _MUTABLE):
                setattr(cls, name, dataclasses.field(default_factory=_copier(default)))
        dataclasses.dataclass(frozen=frozen, kw_only=kw_only)(cls)
        renamed = {"camel": _camel, "pascal": _pascal}.get(str(options.get("rename")), str)
        cls.__encode_names__ = {each.name: renamed(each.name) for each in dataclasses.fields(cls)}  # type: ignore[arg-type]


def _copier(value: Any) -> Any:
    return lambda: copy.copy(value)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.title() for word in rest)


def _pascal(name: str) -> str:
    return "".join(word.title() for word in name.split("_"))


def to_builtins(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Struct):
        return {
            value.__encode_names__[each.name]: to_builtins(getattr(value, each.name))
            for each in dataclasses.fields(value)  # type: ignore[arg-type]  # every struct is one
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {key: to_builtins(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_builtins(one) for one in value]
    return value


def convert(value: Any, kind: Any) -> Any:
    """A value out of what JSON has. Raises ValidationError."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin is typing.Annotated:
        return convert(value, typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, typing.get_args(kind))
    if origin is not None:
        return _several(value, origin, typing.get_args(kind))
    if issubclass(kind, Struct):
        return _struct(value, kind)
    if issubclass(kind, enum.Enum):
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValidationError(f"expected {kind.__name__}, got {value!r:.100}")
    return value


def _one_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    problems = []
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return convert(value, kind)
            except ValueError as error:
                problems.append(str(error))
    raise ValidationError("; ".join(problems) or f"unexpected {value!r:.100}")


def _several(value: Any, origin: Any, inner: tuple[Any, ...]) -> Any:
    if origin is dict and isinstance(value, dict):
        return {convert(key, inner[0]): convert(one, inner[1]) for key, one in value.items()}
    if not isinstance(value, (list, tuple)):
        raise ValidationError(f"expected {origin.__name__}, got {value!r:.100}")
    if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        if len(value) != len(inner):
            raise ValidationError(f"expected {len(inner)} values, got {len(value)}")
        return tuple(convert(one, kind) for one, kind in zip(value, inner, strict=True))
    return origin(convert(one, inner[0]) for one in value)


def _struct(value: Any, kind: Any) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, dict):
        raise ValidationError(f"expected an object for {kind.__name__}, got {value!r:.100}")
    hints = typing.get_type_hints(kind)
    names = kind.__encode_names__
    given = {name: convert(value[said], hints[name]) for name, said in names.items() if said in value}
    try:
        return kind(**given)
    except TypeError as error:
        raise ValidationError(str(error)) from error


def _encode(value: Any, **_: Any) -> bytes:
    return _json.dumps(to_builtins(value), ensure_ascii=False, separators=(",", ":")).encode()


def _decode(data: bytes | str, type: Any = Any) -> Any:  # noqa: A002  # msgspec's own word
    try:
        plain = _json.loads(data)
    except ValueError as error:
        raise DecodeError(str(error)) from error
    return convert(plain, type)


json = types.SimpleNamespace(encode=_encode, decode=_decode)
structs = types.ModuleType("msgspec.structs")
structs.replace = dataclasses.replace  # type: ignore[attr-defined]  # a module made by hand
if __name__ == "msgspec":
    sys.modules["msgspec.structs"] = structs
