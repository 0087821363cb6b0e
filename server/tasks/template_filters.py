"""Filters of a bounded chat template: what they make is noted, before they make it where it multiplies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, Final

from jinja2.exceptions import SecurityError

from headrace.server.tasks.template_budget import ELEMENT, Budget

ALLOWED: Final = frozenset(
    {
        "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape",
        "first", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last",
        "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round",
        "safe", "select", "selectattr", "slice", "sort", "string", "sum", "title", "tojson", "trim",
        "truncate", "unique", "upper", "urlencode", "wordcount",
    }
)  # fmt: skip
"""Jinja's others take time that grows faster than their input, or have no use in a prompt."""
_PATHS: Final = frozenset(
    {"attr", "groupby", "map", "max", "min", "rejectattr", "selectattr", "sort", "sum", "unique"}
)
MAX_PATH: Final = 256
"""Longest name of an attribute, which may be a path and is followed for each element."""
MAX_INDENT: Final = 16
MAX_DIGITS: Final = 64


def bounded(name: str, apply: Callable[..., Any], budget: Callable[[], Budget]) -> Callable[..., Any]:
    """Return a filter that does as ``apply`` does within the budget of the rendering that runs."""
    # what jinja passes first is the context, the environment or nothing
    leading = 1 if hasattr(apply, "jinja_pass_arg") else 0

    @wraps(apply)
    def run(*arguments: Any, **options: Any) -> Any:
        mine = budget()
        mine.spend()
        before, given = arguments[:leading], list(arguments[leading:])
        if name in _PATHS:
            _check_paths([*given[1:], *options.values()])
        check = _CHECKS.get(name)
        if check is not None and given:
            check(mine, given, options)
        result = apply(*before, *given, **options)
        if hasattr(result, "__next__"):
            return mine.count(result, ELEMENT) if name not in {"batch", "slice"} else _lists(mine, result)
        mine.weigh(result)
        return result

    return run


def _lists(budget: Budget, values: Any) -> Any:
    for value in values:
        budget.weigh(value)
        yield value


def _check_paths(values: list[Any]) -> None:
    if any(isinstance(value, str) and len(value) > MAX_PATH for value in values):
        raise SecurityError(f"the name of an attribute has more than {MAX_PATH} characters")


def _argument(given: list[Any], options: dict[str, Any], place: int, name: str, default: Any) -> Any:
    return given[place] if len(given) > place else options.get(name, default)


def _whole(value: Any) -> int:
    return abs(int(value)) if isinstance(value, (int, float)) else 0


def _width(place: int, name: str, default: int, each: int) -> Callable[..., None]:
    """Return a check of filters that make as much as one of their arguments says."""

    def check(budget: Budget, given: list[Any], options: dict[str, Any]) -> None:
        budget.spend(_whole(_argument(given, options, place, name, default)) * each)

    return check


def _indent(budget: Budget, given: list[Any], options: dict[str, Any]) -> None:
    width = _argument(given, options, 1, "width", 4)
    lines = len(str(given[0]).splitlines()) + 1
    budget.spend(lines * (len(width) if isinstance(width, str) else _whole(width)))


def _join(budget: Budget, given: list[Any], options: dict[str, Any]) -> None:
    attribute = _argument(given, options, 2, "attribute", None)
    _check_paths([attribute])
    values = given[0] = list(given[0])
    budget.weigh(values)
    budget.spend(len(str(_argument(given, options, 1, "d", ""))) * len(values))


def _replace(budget: Budget, given: list[Any], options: dict[str, Any]) -> None:
    old, new = _argument(given, options, 1, "old", ""), _argument(given, options, 2, "new", "")
    budget.spend(str(given[0]).count(str(old)) * len(str(new)))


def _round(_: Budget, given: list[Any], options: dict[str, Any]) -> None:
    if _whole(_argument(given, options, 1, "precision", 0)) > MAX_DIGITS:
        raise SecurityError(f"round is to more than {MAX_DIGITS} digits")


def _format(budget: Budget, given: list[Any], options: dict[str, Any]) -> None:
    budget.weigh_percent(str(given[0]), options or tuple(given[1:]))


def _sum(_: Budget, given: list[Any], options: dict[str, Any]) -> None:
    if not isinstance(_argument(given, options, 2, "start", 0), (int, float)):
        raise SecurityError("sum is of numbers only")


def _default(budget: Budget, given: list[Any], options: dict[str, Any]) -> None:
    """Map puts its default in the place of each element that has no such attribute."""
    if "default" in options:
        values = given[0] = list(given[0] or ())
        for _ in values:
            budget.weigh(options["default"])


def _to_json(budget: Budget, given: list[Any], options: dict[str, Any]) -> None:
    indent = _argument(given, options, 2, "indent", None)
    separators = _argument(given, options, 3, "separators", None)
    size = len(indent) if isinstance(indent, str) else _whole(indent)
    if size > MAX_INDENT or sum(len(each) for each in separators or ()) > MAX_INDENT:
        raise SecurityError(f"JSON is indented or separated by more than {MAX_INDENT} characters")
    budget.weigh(given[0], indent=size)


_CHECKS: Final[Mapping[str, Callable[[Budget, list[Any], dict[str, Any]], None]]] = MappingProxyType(
    {
        "batch": _width(1, "linecount", 0, ELEMENT),
        "slice": _width(1, "slices", 0, ELEMENT),
        "center": _width(1, "width", 80, 1),
        "indent": _indent,
        "join": _join,
        "replace": _replace,
        "round": _round,
        "format": _format,
        "sum": _sum,
        "map": _default,
        "tojson": _to_json,
    }
)
