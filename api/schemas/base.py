"""The roots of request and answer models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import islice
from typing import Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from api.schemas.plain import check_plain
from engine.server.takes import with_few_unknown

Json = dict[str, Any]
# No part of a list has as many fields.
MOST_FIELDS = 16


def shown(example: Json) -> ConfigDict:
    """The configuration of a model that the description shows as ``example``."""
    return ConfigDict(json_schema_extra={"examples": [example]})


def answer(example: Any) -> dict[int | str, dict[str, Any]]:
    """The description of a route's answer that has no model of its own."""
    return {200: {"content": {"application/json": {"example": example}}}}


class BoundedBody(BaseModel):
    """A request body, or a part of one, each of whose fields is bounded by its type: an unknown
    field is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Part(BoundedBody):
    """A part of which a few unknown fields at most are told of: a body has room for millions, and
    telling of each takes a kilobyte."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_unknown(cls, given: Any) -> Any:
        return with_few_unknown(given, names_in(cls))


def _with_few_fields(given: Any) -> Any:
    if not isinstance(given, list) or not any(map(_is_too_large, given)):
        return given
    return [dict(islice(x.items(), MOST_FIELDS)) if _is_too_large(x) else x for x in given]


def _is_too_large(item: object) -> bool:
    return isinstance(item, dict) and len(item) > MOST_FIELDS


# The same for a list of parts: one look at it is quicker than a validator of each.
FEW_FIELDS = BeforeValidator(_with_few_fields)


@cache
def names_in(model: type[BaseModel]) -> frozenset[str]:
    """What a body's fields may be called."""
    fields: Mapping[str, FieldInfo] = model.model_fields
    names: set[str] = set()
    for name, field in fields.items():
        alias = field.validation_alias
        names |= set(map(str, alias.choices)) if isinstance(alias, AliasChoices) else {name}
    return frozenset(names)


class Body(Part):
    """A request body in which what cannot be kept (:mod:`api.schemas.plain`) is an error, too."""

    @field_validator("*")
    @classmethod
    def _is_plain(cls, value: Any) -> Any:
        # Numbers in typed lists are bounded by their type, and there may be millions of them.
        is_typed = (
            isinstance(value, list) and value and isinstance(value[0], int | float | BoundedBody)
        )
        return value if is_typed else check_plain(value)


class View(BaseModel):
    """An answer, read from a row's attributes."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    def to_json(self) -> Json:
        """The answer as JSON values."""
        return self.model_dump(mode="json")
