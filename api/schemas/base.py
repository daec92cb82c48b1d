"""The roots of request and answer models."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, field_validator, model_validator

from api.schemas.plain import check_plain
from engine.server.takes import with_few_unknown

Json = dict[str, Any]


def shown(example: Json) -> ConfigDict:
    """The configuration of a model that the description shows as ``example``."""
    return ConfigDict(json_schema_extra={"examples": [example]})


def answer(example: Any) -> dict[int | str, dict[str, Any]]:
    """The description of a route's answer that has no model of its own."""
    return {200: {"content": {"application/json": {"example": example}}}}


@cache
def field_names(kind: type[BaseModel]) -> tuple[str, ...]:
    """What a body may call the fields of ``kind``."""
    names: list[str] = []
    for name, field in kind.model_fields.items():
        alias = field.validation_alias
        names += map(str, alias.choices) if isinstance(alias, AliasChoices) else [name]
    return tuple(names)


class BoundedBody(BaseModel):
    """A request body, or a part of one, each of whose fields is bounded by its type: an unknown
    field is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Body(BoundedBody):
    """A request body in which what cannot be kept (:mod:`api.schemas.plain`) is an error, too."""

    @model_validator(mode="before")
    @classmethod
    def _few_are_unknown(cls, given: Any) -> Any:
        return with_few_unknown(given, field_names(cls))

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
