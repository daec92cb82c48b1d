"""The roots of request and answer models."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from api.schemas.plain import check_plain

Json = dict[str, Any]


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


class Body(BoundedBody):
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
