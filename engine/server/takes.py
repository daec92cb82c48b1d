"""Says in their schemas what bodies take: nulls, fields that change nothing, and strict values."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

Json = dict[str, Any]
NULL: Json = {"type": "null"}
# Of a list the first item that is wrong is told of: a body has room for millions, and telling of
# each takes a kilobyte.
FIRST_FAULT = Field(fail_fast=True)
MOST_UNKNOWN = 5


def without_nulls(given: Any) -> Any:
    """Clients write null for what they do not set."""
    if not isinstance(given, dict):
        return given
    return {name: value for name, value in given.items() if value is not None}


def with_few_unknown(given: Any, known: Container[str]) -> Any:
    """``given`` with a few at most of the names that are not ``known``, since each is refused."""
    if not isinstance(given, dict):
        return given
    left_out = set([name for name in given if name not in known][MOST_UNKNOWN:])
    return {name: value for name, value in given.items() if name not in left_out}


def _check_number(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError(f"{json.dumps(value)[:40]} is not a number")
    return value


# A JSON number; neither true nor "1" counts as one (as with strict floats). If bounds stand beside
# it, it must come after them, or the description would lack them.
NUMBER = BeforeValidator(_check_number)
# Neither "yes" nor 1.
Flag = Annotated[bool, Field(strict=True)]


def take_nulls(schema: Json) -> None:
    """Say that every field that may be left out may be null as well."""
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        if name not in required and NULL not in field.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [field, NULL]}


def take_known_fields(
    schema: Json, neutral: Mapping[str, tuple[Any, ...]], free: frozenset[str]
) -> None:
    """Say which further fields are taken: ``free`` ones with any value, ``neutral`` ones with
    theirs, and any with null."""
    own = schema["properties"]
    for name, values in neutral.items():
        own.setdefault(
            name, {"enum": [*values, None], "description": "Asks for what happens anyway"}
        )
    for name in sorted(free):
        own.setdefault(name, {"description": "Changes nothing here"})
    schema["additionalProperties"] = NULL
