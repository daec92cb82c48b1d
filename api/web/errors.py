"""Errors as RFC 9457 problem documents; every domain error is converted here, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from api.schemas.base import names_in
from engine.server.gate import code_of
from engine.server.methods import allowed_methods
from engine.server.queries import unknown_parameters
from engine.spec.errors import EngineError, PolicyError
from engine.spec.names import did_you_mean
from policies.errors import PolicyInputError
from store import ConflictError, CursorError, NotFoundError, StoreError
from store.outage import is_outage
from tuner.spec.errors import TunerError

PROBLEM_TYPE = "application/problem+json"
CURSOR = "/query/cursor"
BODY = ("body",)
DOMAIN_ERRORS = (EngineError, PolicyInputError, TunerError, StoreError)
# Of what is wrong with one request.
MOST_TOLD = 50
# ("body", NAME): a field of the body itself.
TOP_LEVEL = 2


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One wrong field, by JSON pointer."""

    pointer: str
    detail: str


class ApiError(Exception):
    """A request the service refuses, with everything the problem document says."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extra = extra


def install_error_handlers(app: FastAPI) -> None:
    """Make every refusal of ``app`` a problem document."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    for kind in DOMAIN_ERRORS:
        app.add_exception_handler(kind, _on_domain_error)


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuse a query parameter that the operation does not know, before it does anything.

    Raises:
        ApiError: 422, with each of them.
    """
    unknown = unknown_parameters(request).items()
    if unknown:
        errors = [FieldError(pointer=f"/query/{name}", detail=detail) for name, detail in unknown]
        raise ApiError(422, "invalid_request", errors[0].detail, errors=errors)


def as_api_error(error: Exception) -> ApiError:
    """The refusal a domain error stands for."""
    match error:
        case ApiError():
            return error
        case NotFoundError():
            return ApiError(404, "not_found", str(error))
        case CursorError():
            errors = [FieldError(pointer=CURSOR, detail="take it from a Link header")]
            return ApiError(422, "invalid_cursor", str(error), errors=errors)
        case ConflictError():
            return ApiError(409, "conflict", str(error))
        case PolicyError(needs=str(needs)):
            return ApiError(409, "outside_envelope", str(error), needs=needs, errors=_point(error))
        case PolicyError():
            return ApiError(422, "invalid_policy", str(error), errors=_point(error))
        case EngineError() | PolicyInputError() | TunerError():
            return ApiError(422, "invalid_value", str(error))
        case _ if is_outage(error):
            return ApiError(
                503,
                "database_away",
                "the database cannot be used now; send this again",
                headers={"Retry-After": "2"},
            )
        case _:
            return ApiError(500, "internal_error", "the service failed; see its log")


def problem_response(error: ApiError, *, trace_id: str, instance: str) -> JSONResponse:
    """The problem document of ``error`` as an HTTP response."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "errors": [{"pointer": e.pointer, "detail": e.detail} for e in error.errors],
        "trace_id": trace_id,
        **error.extra,
    }
    return JSONResponse(body, error.status, headers=error.headers, media_type=PROBLEM_TYPE)


def respond(request: Request, error: Exception) -> JSONResponse:
    """The response for a refusal outside the framework; what is none is raised again."""
    match error:
        case ApiError():
            return _respond(request, error)
        case HTTPException():
            return _on_http_error(request, error)
        case _ if isinstance(error, DOMAIN_ERRORS):
            return _on_domain_error(request, error)
        case _:
            raise error


def answer_crash(request: Request, error: Exception) -> JSONResponse:
    """The response for what no handler knows."""
    return _respond(request, as_api_error(error))


def _respond(request: Request, error: ApiError) -> JSONResponse:
    return problem_response(error, trace_id=request.state.trace_id, instance=request.url.path)


def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError), "registered for ApiError only"
    return _respond(request, error)


def _on_domain_error(request: Request, error: Exception) -> JSONResponse:
    return _respond(request, as_api_error(error))


def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException), "registered for HTTPException only"
    detail = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(allowed_methods(request))
    refusal = ApiError(error.status_code, code_of(error), detail, headers=headers)
    return _respond(request, refusal)


def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError), "registered for RequestValidationError only"
    every = error.errors()
    errors = [_field_error(request, error, found) for found in every[:MOST_TOLD]]
    is_cursor = {found.pointer for found in errors} == {CURSOR}
    code = "invalid_cursor" if is_cursor else "invalid_request"
    detail = f"{len(every)} value(s) are not valid"
    return _respond(request, ApiError(422, code, detail, errors=errors))


def _field_error(
    request: Request, error: RequestValidationError, found: Mapping[str, Any]
) -> FieldError:
    """One finding of the framework; what is unknown is told with what is near."""
    location = found["loc"]
    match found["type"]:
        case "json_invalid":
            where = _line_and_column(error.body, location[-1])
            detail = f"{found['msg']}{where}: {found['ctx']['error']}"
            return FieldError(pointer="", detail=detail)
        case "model_attributes_type" | "dict_type" if location == BODY and not _is_json(request):
            kind = request.headers.get("content-type", "none")
            detail = f"send JSON: the Content-Type must be application/json, and is {kind}"
            return FieldError(pointer="", detail=detail)
        case "extra_forbidden":
            word = str(location[-1])
            known = _known_fields(request) if len(location) == TOP_LEVEL else ()
            detail = f"unknown field {word!r}{did_you_mean(word, known)}"
            return FieldError(pointer=_pointer(location), detail=detail)
        case _:
            detail = found["msg"].removeprefix("Value error, ")
            return FieldError(pointer=_pointer(location), detail=detail)


def _is_json(request: Request) -> bool:
    return "json" in request.headers.get("content-type", "")


def _line_and_column(body: Any, position: Any) -> str:
    if not isinstance(body, str) or not isinstance(position, int):
        return ""
    before = body[:position]
    return f" at line {before.count(chr(10)) + 1}, column {position - before.rfind(chr(10))}"


def _known_fields(request: Request) -> list[str]:
    """The fields of the body that the endpoint takes, by every name they may have."""
    names: list[str] = []
    for kind in get_type_hints(request.scope["endpoint"]).values():
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += sorted(names_in(kind))
    return names


def _pointer(location: Sequence[str | int]) -> str:
    """A JSON pointer into the body; a parameter is named by where it stands."""
    where, *path = location
    return "/" + "/".join(str(part) for part in (path if where == "body" else location))


def _point(error: PolicyError) -> list[FieldError]:
    """Policy errors start with the JSON pointer of the knob they are about."""
    pointer, colon, detail = str(error).partition(": ")
    is_pointer = bool(colon) and pointer.startswith("/")
    return [FieldError(pointer=pointer, detail=detail)] if is_pointer else []
