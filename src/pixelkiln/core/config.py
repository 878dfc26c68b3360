"""Frozen dataclasses to JSON and back, and typed overrides by dotted name ("model.width" = "64"). One walk over the types serves all.

A field may be a union of dataclasses, `net: UNetConfig | DiTConfig`. In JSON such a value says which it is among the union's own members,
{"kind": "dit", ...}; on the command line `--net dit` takes that member's defaults, and `--net.depth 4` sets a field of the one that is taken.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from .errors import UserError

__all__ = ["Field", "apply", "flat_fields", "from_json", "nearest", "parse", "to_json", "variants"]


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean a, b?)' with the nearest known names, or a list of some."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known[:12])}{', …' if len(known) > 12 else ''}"


def variants(kind: Any) -> dict[str, Any]:
    """The members of a union of several dataclasses by name (DiTConfig: dit, MLPNets: mlp), none of which has a field "kind"; empty for every other type."""
    members: list[Any] = [a for a in get_args(kind) if is_dataclass(a)] if get_origin(kind) in (Union, types.UnionType) else []
    assert len(members) < 2 or not any(f.name == "kind" for m in members for f in fields(m))
    return {m.__name__.removesuffix("Config").removesuffix("Nets").lower(): m for m in members} if len(members) > 1 else {}


def _variant(kind: Any, value: Any) -> str:
    """The name among `variants(kind)` of the type of the value; "" where there is none."""
    return next((name for name, member in variants(kind).items() if type(value) is member), "")


def to_json(value: Any) -> Any:
    """A dataclass tree as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
        for f in fields(value):
            if is_dataclass(inner := getattr(value, f.name)) and (name := _variant(typing.get_type_hints(type(value))[f.name], inner)):
                found[f.name] = {"kind": name} | found[f.name]
        return found
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a config holds plain values only, not {type(value).__name__}")


def from_json(kind: Any, data: Any, where: str = "config") -> Any:
    """The value of type `kind` that `to_json` turned into `data`; what does not fit is a UserError naming the field."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(data, Mapping):
            raise UserError(f"{where}: expected an object, got {_short(data)}")
        hints = typing.get_type_hints(kind)
        for name in data:
            if name not in hints:
                raise UserError(f"{where}: unknown field {name!r}; {nearest(name, hints)}")
        for f in fields(kind):
            if f.name not in data and f.default is MISSING and f.default_factory is MISSING:
                raise UserError(f"{where}: field {f.name!r} is missing")
        return kind(**{name: from_json(hints[name], v, f"{where}.{name}") for name, v in data.items()})
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        if (known := variants(kind)) and isinstance(data, Mapping) and "kind" in data:
            member = known.get(str(data["kind"]))
            if member is None:
                raise UserError(f"{where}: unknown kind {_short(data['kind'])}; {nearest(str(data['kind']), known)}")
            return from_json(member, {k: v for k, v in data.items() if k != "kind"}, where)
        return from_json(next(a for a in args if a is not type(None)), data, where)  # of several, what has no kind is the first
    if origin is Literal:
        if data not in args:
            raise UserError(f"{where}: {_short(data)} is not one of {', '.join(map(str, args))}")
        return data
    if origin is tuple:
        if not isinstance(data, (list, tuple)) or (args[-1] is not Ellipsis and len(data) != len(args)):
            raise UserError(f"{where}: expected {'a list' if args[-1] is Ellipsis else f'{len(args)} values'}, got {_short(data)}")
        kinds = [args[0]] * len(data) if args[-1] is Ellipsis else args
        return tuple(from_json(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, data, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise UserError(f"{where}: expected an object, got {_short(data)}")
        return {k: from_json(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool) and _sane(data):
        return float(data)
    if not isinstance(data, kind) or (kind in (int, float) and (isinstance(data, bool) or not _sane(data))):
        raise UserError(f"{where}: expected {kind.__name__}, got {_short(data)}")
    return data


def _sane(number: int | float) -> bool:
    """Whether a number is finite and, if whole, has no more than 64 bits."""
    return math.isfinite(number) if isinstance(number, float) else abs(number) < 2**63


def _short(data: Any) -> str:
    """A value in a message."""
    return text if len(text := repr(data)) <= 80 else text[:77] + "..."


def parse(kind: Any, text: str, where: str) -> Any:
    """A value of type `kind` from what a user typed; 'none' for None, commas between the values of a tuple."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
        if known := variants(kind):
            if text not in known:
                raise UserError(f"{where}: {text!r} is not one of {', '.join(known)}, whose fields are set by their own names")
            return known[text]()
        return parse(next(a for a in args if a is not type(None)), text, where)
    if origin is Literal:
        values = {str(a): a for a in args}
        if text not in values:
            raise UserError(f"{where}: {text!r} is not one of {', '.join(values)}")
        return values[text]
    if origin is tuple:
        parts = [p.strip() for p in text.strip("()[] ").split(",") if p.strip()]
        kinds = [args[0]] * len(parts) if args[-1] is Ellipsis else list(args)
        if len(parts) != len(kinds):
            raise UserError(f"{where}: expected {len(kinds)} values with commas between them, got {text!r}")
        return tuple(parse(k, p, where) for k, p in zip(kinds, parts, strict=True))
    if kind is bool:
        truth = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
        if text.lower() not in truth:
            raise UserError(f"{where}: {text!r} is not true or false")
        return truth[text.lower()]
    if kind is str:
        return text
    if kind not in (int, float):
        raise UserError(f"{where}: it has fields of its own; say 'none' to leave it out, or set one of them")
    try:
        value = kind(text)
        if not _sane(value):
            raise ValueError
    except ValueError:
        raise UserError(f"{where}: {_short(text)} is not {'a whole number' if kind is int else 'a number'}") from None
    return value


@dataclass(frozen=True)
class Field:
    """One leaf of a config tree: its dotted name, type, value, and the words for its type."""

    name: str
    kind: Any
    value: Any

    @property
    def words(self) -> str:
        """The type as a user reads it: int, float, a|b|c, ..."""
        kind, optional = self.kind, ""
        if known := variants(kind):
            return "|".join([*known, *["none"] * (type(None) in get_args(kind))])
        if get_origin(kind) in (Union, types.UnionType):
            kind, optional = next(a for a in get_args(kind) if a is not type(None)), "|none"
        if get_origin(kind) is Literal:
            return "|".join(map(str, get_args(kind))) + optional
        if get_origin(kind) is tuple:
            inner = get_args(kind)
            return (",".join(a.__name__ for a in inner if a is not Ellipsis) + (",…" if inner[-1] is Ellipsis else "")) + optional
        return kind.__name__ + optional


def flat_fields(config: Any, prefix: str = "") -> Iterator[Field]:
    """Every leaf of a tree of dataclasses and mappings of dataclasses. An optional dataclass that is None is one leaf; a union of dataclasses
    is a leaf whose value is the member's name, before that member's own."""
    hints = typing.get_type_hints(type(config))
    for f in fields(config):
        value, kind, name = getattr(config, f.name), hints[f.name], f"{prefix}{f.name}"
        if is_dataclass(value) and not isinstance(value, type):
            if member := _variant(kind, value):
                yield Field(name, kind, member)
            yield from flat_fields(value, name + ".")
        elif isinstance(value, Mapping):
            for k, v in value.items():
                yield from flat_fields(v, f"{name}.{k}.")
        else:
            yield Field(name, kind, value)


def apply(config: Any, path: Sequence[str], value: Any, where: str) -> Any:
    """A copy of the tree with one leaf set; `value` is already of the leaf's type."""
    head, rest = path[0], path[1:]
    if isinstance(config, Mapping):
        return {k: apply(v, rest, value, where) if k == head else v for k, v in config.items()}
    now = getattr(config, head)
    if rest:
        return replace(config, **{head: apply(now, rest, value, where)})
    return config if is_dataclass(value) and type(now) is type(value) else replace(config, **{head: value})  # a union's member that it is already
