"""Options that belong together as one value: a command takes groups, its users see options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

Command = Callable[..., None]


def grouped(help_order: str = "") -> Callable[[Command], Command]:
    """Make a command's options of its parameters, and of the fields of those that are dataclasses.

    ``help_order`` names options in the order in which the help lists them; others follow, group
    by group.

    Raises:
        TypeError: one option in two groups, or one in the order that no group has.
    """

    def decorate(command: Command) -> Command:
        options = list(_options(command))
        names = [option.name for option in options]
        first = help_order.split()
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TypeError(f"{command.__name__}: {', '.join(twice)} in two groups")
        if unknown := [name for name in first if name not in names]:
            raise TypeError(f"{command.__name__}: no group has {', '.join(unknown)}")

        @wraps(command)
        def run(**values: Any) -> None:
            command(**_arguments(command, values))

        options.sort(key=lambda option: [*first, *names].index(option.name))
        # Where inspect looks first.
        run.__signature__ = Signature(options)  # type: ignore[attr-defined]
        return run

    return decorate


def _options(taker: Callable[..., Any]) -> Iterator[Parameter]:
    for name, kind in _taken(taker).items():
        if _is_group(kind):
            yield from _options(kind)
        else:
            own = signature(taker).parameters[name]
            yield own.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind)


def _arguments(taker: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: kind(**_arguments(kind, values)) if _is_group(kind) else values[name]
        for name, kind in _taken(taker).items()
    }


def _is_group(kind: Any) -> bool:
    return is_dataclass(kind)


def _taken(taker: Callable[..., Any]) -> dict[str, Any]:
    """What a function or a dataclass takes, by name, with its type."""
    types = get_type_hints(taker, include_extras=True)
    return {name: types[name] for name in signature(taker).parameters}
