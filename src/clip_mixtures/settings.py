"""Sections of parameters as values: a dataclass says what is allowed, and mistakes are named.

A field's annotation carries its limits, as in ``epochs: PositiveInt`` or
``images: Annotated[str, OneOf(("packed", "decoded"))] = "packed"``.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from clip_mixtures.errors import UserError, unknown

Settings = TypeVar("Settings")


class Limit(Protocol):
    """What a value must keep to."""

    def check(self, value: Any, where: str) -> None:
        """Refuse a value out of bounds.

        Raises:
            UserError: naming where it was found, the value and what is allowed.
        """
        ...


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of several words."""

    allowed: Sequence[str]

    def check(self, value: Any, where: str) -> None:
        """Refuse another word."""
        if value not in self.allowed:
            raise unknown(where.rpartition(".")[2], value, self.allowed, where)


@dataclasses.dataclass(frozen=True)
class Range:
    """A finite number in a range.

    Attributes:
        low: the lower end.
        high: the upper end; none by default.
        low_included: whether the lower end itself is allowed.
        high_included: whether the upper end itself is allowed.
    """

    low: float
    high: float = math.inf
    low_included: bool = True
    high_included: bool = False

    def check(self, value: Any, where: str) -> None:
        """Refuse a number out of the range."""
        if not math.isfinite(value):
            raise UserError(f"{where}: is {value}; allowed: a finite number")
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        if not (above and below):
            raise UserError(f"{where}: is {value}; allowed: {self}")

    def __str__(self) -> str:
        """Say what is allowed."""
        if math.isinf(self.high):
            return f"{self.low} or more" if self.low_included else f"more than {self.low}"
        first = f"from {self.low} to" if self.low_included else f"more than {self.low},"
        last = f"{self.high}" if self.high_included else f"less than {self.high}"
        # "from 0 to 1", but "more than 0, up to 1".
        return f"{first} up to {last}" if self._half_open_below() else f"{first} {last}"

    def _half_open_below(self) -> bool:
        return self.high_included and not self.low_included


PositiveInt = Annotated[int, Range(1)]
NaturalInt = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, low_included=False)]
NotNegative = Annotated[float, Range(0)]
BelowOne = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, low_included=False, high_included=True)]


def settings_from_params(kind: type[Settings], params: Any, where: str) -> Settings:
    """Make a value of a section of the parameters.

    Args:
        kind: a dataclass whose fields are annotated with limits.
        params: the section; keys with a default may be left out.
        where: its name, for messages.

    Raises:
        UserError: for a section that is no mapping, an unknown or missing key, or a value of the
            wrong type or out of range.
    """
    if not isinstance(params, Mapping):
        raise UserError(f"{where}: is {params!r}, not a mapping of keys to values")
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = [field.name for field in fields]
    for name in params:
        if name not in names:
            raise unknown("key", name, names, where)
    needed = [field.name for field in fields if _is_needed(field)]
    missing = [name for name in needed if name not in params]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; state every value of the recipe")
    hints = typing.get_type_hints(kind, include_extras=True)
    values = {
        name: checked(hints[name], value, f"{where}.{name}") for name, value in params.items()
    }
    return kind(**values)


def check_settings(settings: Any, where: str) -> None:
    """Check a value that was not made of parameters, as :func:`settings_from_params` does.

    Raises:
        UserError: for a value of the wrong type or out of range.
    """
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        checked(hint, getattr(settings, name), f"{where}.{name}")


def checked(hint: Any, value: Any, where: str) -> Any:
    """Return a value as the type of its annotation, if it keeps to the limits.

    Args:
        hint: the annotation; of type bool, int, float or str, or ``tuple[str, ...]``, which a
            list becomes.
        value: as it was found.
        where: its name, for messages.

    Raises:
        UserError: for a value of the wrong type or out of range.
    """
    kind, *limits = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if kind is str or typing.get_origin(kind) is tuple:
        # Of words and lists the limits say more than the type, so they come first.
        for limit in limits:
            limit.check(value, where)
        return _of_type(kind, value, where)
    made = _of_type(kind, value, where)
    for limit in limits:
        limit.check(value, where)
    return made


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _of_type(kind: Any, value: Any, where: str) -> Any:
    if typing.get_origin(kind) is tuple:
        (inner, *_) = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: is {value!r}, not a list")
        return tuple(_of_type(inner, item, where) for item in value)
    is_bool = isinstance(value, bool)
    fits = {
        bool: is_bool,
        int: isinstance(value, int) and not is_bool,
        float: isinstance(value, int | float) and not is_bool,
        str: isinstance(value, str),
    }[kind]
    if not fits:
        raise UserError(f"{where}: is {value!r}, not of type {kind.__name__}{_hint(value)}")
    return kind(value)


def _hint(value: Any) -> str:
    """Explain a number that is text."""
    try:
        float(value)
    except (TypeError, ValueError):
        return ""
    return f" (in quotes it is text; write {value})" if isinstance(value, str) else ""
