"""Errors of the HTTP surface: OpenAI's JSON form for clients, problem+json on the knob plane."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from engine.server.gate import code_of
from engine.server.methods import allowed_methods
from engine.spec.errors import (
    EngineError,
    OverloadError,
    PolicyError,
    QueueFullError,
    RequestError,
    StalePolicyError,
)

logger = logging.getLogger(__name__)

KNOB_PREFIX = "/v1/engine"
# A guess at when a queue has room again, used while no request has finished yet; an unhealthy
# engine needs an operator.
QUEUE_RETRY_S = 1
UNHEALTHY_RETRY_S = 10
# A rate may be so low that the next request is let in after longer than anybody waits.
MOST_RETRY_S = 86_400.0
CLIENT_CLOSED_REQUEST = 499
# A long list of wrong items has one fault per item and allowed form.
MAX_FAULTS = 5
# Messages about a value start with the name of its field.
FIELD_AT_FAULT = re.compile(r"(\w+)[=:]")


class ApiError(Exception):
    """An answer that is an error; rendered in the form its path speaks.

    ``code`` is the stable word a program matches on; ``param`` names the field at fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = as_text(message)
        self.code = code
        self.param = None if param is None else as_text(param)
        self.headers = headers or {}
        self.extra = extra or {}


@dataclass(frozen=True, kw_only=True)
class FieldFault:
    """One field at fault: where (a JSON pointer) and why."""

    pointer: str
    detail: str


def as_text(words: str) -> str:
    """``words`` with halves of surrogate pairs escaped: JSON can name them, but they are no
    text."""
    return words.encode(errors="backslashreplace").decode()


def invalid(message: str, *, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field at fault."""
    return ApiError(400, message, code=code, param=param)


def check_model(asked: str, served: str) -> None:
    """Refuse a call for another model than the one served.

    Raises:
        ApiError: 404.
    """
    if asked != served:
        raise ApiError(
            404,
            f"model {asked!r} is not served here; this is {served!r}",
            code="model_not_found",
            param="model",
        )


def unavailable(message: str, *, code: str) -> ApiError:
    """A 503 that says when to look again."""
    headers = {"Retry-After": str(UNHEALTHY_RETRY_S)}
    return ApiError(503, message, code=code, headers=headers)


def deadline_exceeded(message: str) -> ApiError:
    """A 408 that asks clients not to retry by themselves."""
    headers = {"x-should-retry": "false"}
    return ApiError(408, message, code="deadline_exceeded", param="timeout_ms", headers=headers)


def no_finite_logit(message: str) -> ApiError:
    """A 500: the model, not the engine, has no answer to this prompt, and asking again will not
    give one."""
    headers = {"x-should-retry": "false"}
    return ApiError(500, message, code="non_finite_logits", headers=headers)


def from_engine_error(error: EngineError, *, queue_retry_s: int = QUEUE_RETRY_S) -> ApiError:
    """The one place where the engine's errors become HTTP statuses."""
    match error:
        case OverloadError():
            retry_s = min(max(1.0, error.retry_s), MOST_RETRY_S)
            retry = {"Retry-After": str(math.ceil(retry_s))}
            return ApiError(429, str(error), code="overloaded", headers=retry)
        case QueueFullError():
            retry = {"Retry-After": str(queue_retry_s)}
            return ApiError(429, str(error), code="queue_full", headers=retry)
        case RequestError():
            field = FIELD_AT_FAULT.match(str(error))
            param = field[1] if field is not None else None
            return ApiError(400, str(error), code="invalid_value", param=param)
        case StalePolicyError():
            return ApiError(412, str(error), code="stale_policy")
        case PolicyError() if error.needs is not None:
            return ApiError(
                409, str(error), code="outside_envelope", extra={"needs": str(error.needs)}
            )
        case PolicyError():
            return ApiError(422, str(error), code="invalid_policy")
        case _:
            # A rank's words hold tracebacks and paths, which are not for callers.
            logger.error("answered with 503: %s", error)
            return unavailable("the engine failed; its log says why", code="engine_failed")


def openai_error(error: ApiError) -> dict[str, Any]:
    """OpenAI's error object, also sent inside a stream."""
    return {
        "error": {
            "message": error.message,
            "type": _openai_type(error.status),
            "param": error.param,
            "code": error.code,
        }
    }


def problem(error: ApiError, request: Request, faults: Sequence[FieldFault] = ()) -> dict[str, Any]:
    """An RFC 9457 document."""
    return {
        "type": f"urn:gearshift:problem:{error.code}",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "instance": request.url.path,
        "code": error.code,
        "errors": [{"pointer": f.pointer, "detail": f.detail} for f in faults],
        "trace_id": request.state.trace_id,
        **error.extra,
    }


def install_error_handlers(app: FastAPI) -> None:
    """Render every error of ``app``, framework ones included, in the form of its path."""

    async def on_api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return render(error, request)

    async def on_engine_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, EngineError)
        return render(from_engine_error(error), request)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return render(from_http_error(error, request), request)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _render_invalid(error, request)

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(EngineError, on_engine_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)


def answer_crash(request: Request, _: Exception) -> JSONResponse:
    """The response for a bug of ours, whose words are for the log."""
    return render(ApiError(500, "internal error", code="internal_error"), request)


def from_http_error(error: HTTPException, request: Request) -> ApiError:
    """A refusal of the framework, or of the gate before it, as an error of this server."""
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(allowed_methods(request))
    return ApiError(
        error.status_code,
        f"{request.method} {request.url.path}: {error.detail}",
        code=code_of(error),
        headers=headers,
    )


def respond(request: Request, error: Exception) -> JSONResponse:
    """The response for a refusal at the gate; any other error is raised again."""
    match error:
        case ApiError():
            return render(error, request)
        case HTTPException():
            return render(from_http_error(error, request), request)
        case _:
            raise error


def render(error: ApiError, request: Request, faults: Sequence[FieldFault] = ()) -> JSONResponse:
    """The response for ``error`` in the form that the request's path speaks."""
    if request.url.path.startswith(KNOB_PREFIX):
        return JSONResponse(
            problem(error, request, faults),
            status_code=error.status,
            headers=error.headers,
            media_type="application/problem+json",
        )
    return JSONResponse(openai_error(error), status_code=error.status, headers=error.headers)


def _render_invalid(error: RequestValidationError, request: Request) -> JSONResponse:
    faults = [_fault(found, request) for found in error.errors()[:MAX_FAULTS]]
    message = "; ".join(f"{f.pointer.lstrip('/') or 'body'}: {f.detail}" for f in faults)
    is_knob = request.url.path.startswith(KNOB_PREFIX)
    param = faults[0].pointer.lstrip("/").split("/")[0] or None
    status = 422 if is_knob else 400
    return render(ApiError(status, message, code="invalid_request", param=param), request, faults)


def _fault(found: dict[str, Any], request: Request) -> FieldFault:
    place, *rest = found["loc"]
    if found["type"] == "json_invalid":  # what follows is no field but where it broke off
        why = found.get("ctx", {}).get("error", found["msg"])
        return FieldFault(pointer="", detail=f"no JSON at character {rest[-1]}: {why}")
    kind = request.headers.get("content-type", "none")
    if place == "body" and not rest and "json" not in kind:
        detail = f"send JSON: the Content-Type must be application/json, and is {kind}"
        return FieldFault(pointer="", detail=as_text(detail))
    path = [str(part) for part in found["loc"] if part not in ("body", "header")]
    detail = str(found["msg"]).removeprefix("Value error, ")
    if place == "header":
        detail += f", not {found['input']!r}"
    # A rule over several fields has no place of its own; its message names one.
    if not path and (field := FIELD_AT_FAULT.match(detail)) is not None:
        path, detail = [field[1]], detail[field.end() :].strip()
    return FieldFault(pointer=as_text("/" + "/".join(path)), detail=as_text(detail))


def _openai_type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 404:
            return "not_found_error"
        case 408:
            return "timeout_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= 500:
            return "server_error"
        case _:
            return "invalid_request_error"
