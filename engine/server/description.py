"""Completes the description of the engine's server with what routes do not say of themselves.

The model's name in it is that of the served one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from engine.server.keys import ServerKeys, is_knob
from engine.server.shapes import ChatChunkShape, ErrorAnswer, Problem, Shape

Json = dict[str, Any]
REFS = "#/components/schemas/"
METHODS = ("get", "put", "post", "patch", "delete")
HEADERS = {401: "WWW-Authenticate", 412: "ETag", 428: "ETag", 429: "Retry-After"}
JSON_TYPE, PROBLEM_TYPE = "application/json", "application/problem+json"
GENERATIONS = ("createCompletion", "createChatCompletion")
Complete = Callable[[Json], None]


class DescribedApp(FastAPI):
    """A FastAPI application whose description ``complete`` completes, once."""

    def __init__(self, *, complete: Complete, **options: Any) -> None:
        super().__init__(**options)
        self._complete = complete

    def openapi(self) -> Json:
        """The OpenAPI document, made at the first call."""
        is_new = self.openapi_schema is None
        document = super().openapi()
        if is_new:
            self._complete(document)
        return document


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Path, method and description of every operation."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def refuse(document: Json, operation: Json, status: int, media_type: str, schema: str) -> None:
    """Say that ``operation`` may answer ``status`` with a body of ``schema``."""
    name = f"Refused{status}" if schema == "Problem" else f"Error{status}"
    found: Json = {
        "description": HTTPStatus(status).phrase,
        "content": {media_type: {"schema": {"$ref": f"{REFS}{schema}"}}},
    }
    if status in HEADERS:
        found["headers"] = {HEADERS[status]: {"schema": {"type": "string"}}}
    document["components"].setdefault("responses", {})[name] = found
    operation["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}


def show_examples(document: Json, roots: Sequence[type[BaseModel]]) -> None:
    """Add to every JSON body and answer the example of its model, or a list of that.

    ``roots`` are the classes that the models derive from. The framework leaves nulls out of
    examples.
    """
    schemas = document["components"]["schemas"]
    for model in _below(roots):
        extra = model.model_config.get("json_schema_extra")
        if model.__name__ in schemas and isinstance(extra, dict) and "examples" in extra:
            schemas[model.__name__]["examples"] = deepcopy(extra["examples"])
    for _, _, operation in operations(document):
        for media in _media(operation):
            schema = media.get("schema", {})
            if "example" in media or "examples" in media:
                continue
            if (shown := _shown(schema.get("items", schema), schemas)) is not None:
                media["example"] = [shown] if "items" in schema else shown


def _media(operation: Json) -> Iterator[Json]:
    """What the body and the successful answers hold, by media type."""
    answers = [found for code, found in operation["responses"].items() if int(code) < 300]
    for part in (operation.get("requestBody", {}), *answers):
        yield from part.get("content", {}).values()


def _below(roots: Sequence[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    for root in roots:
        yield root
        yield from _below(root.__subclasses__())


def _shown(schema: Json, schemas: Json) -> Any:
    named = schemas.get(schema.get("$ref", "").removeprefix(REFS), schema)
    return next(iter(named.get("examples", ())), None)


def drop_framework_errors(document: Json) -> None:
    """Drop the framework's own form of errors, which no answer has."""
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)


def events(chunk: type[BaseModel]) -> Json:
    """The content of an answer that comes as server-sent events: chunks, or what went wrong."""
    parts = [{"$ref": f"{REFS}{shape.__name__}"} for shape in (chunk, ErrorAnswer)]
    document = {"contentMediaType": JSON_TYPE, "contentSchema": {"anyOf": parts}}
    event = {
        "type": "object",
        "description": "One event; the last one's data is [DONE]",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, document]}},
        "required": ["data"],
    }
    return {"text/event-stream": {"schema": event}}


def describe(model_name: str, open_paths: tuple[str, ...], keys: ServerKeys) -> Complete:
    """What completes the description of a server of ``model_name``."""

    def complete(document: Json) -> None:
        schemas = document["components"]["schemas"]
        schemas |= _schemas(ErrorAnswer, Problem, ChatChunkShape)
        drop_framework_errors(document)
        show_examples(document, (Shape,))
        for path, method, operation in operations(document):
            needs_key = path not in open_paths and keys.key_of(path) is not None
            if needs_key:
                operation["security"] = [{"key": []}]
            operation["responses"].pop("422", None)
            form = (PROBLEM_TYPE, "Problem") if is_knob(path) else (JSON_TYPE, "ErrorAnswer")
            for status in sorted(_refusals(path, method, operation, keys, needs_key=needs_key)):
                refuse(document, operation, status, *form)
        if keys.api is not None or keys.knobs is not None:
            document["components"]["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer"}
            }
        _name_model(document, model_name)

    return complete


def _refusals(
    path: str, method: str, operation: Json, keys: ServerKeys, *, needs_key: bool
) -> set[int]:
    found = {431, 500}
    if path.startswith(("/v1", "/tokenize", "/detokenize")):
        found |= {429}
    if needs_key:
        found |= {401}
    if "{" in path:
        found |= {404}
    if method == "post":
        found |= {400, 404, 408, 413}
    if operation["operationId"] in GENERATIONS:
        found |= {503}
    if is_knob(path):
        found |= {503} if keys.has_knobs else {403}
        found |= {422}  # a query parameter that it does not know
    if method == "patch":
        found |= {400, 408, 409, 412, 413, 428}
    return found


def _schemas(*shapes: type[BaseModel]) -> Json:
    _, found = models_json_schema(
        [(shape, "serialization") for shape in shapes], ref_template=f"{REFS}{{model}}"
    )
    definitions: Json = found["$defs"]
    return definitions


def _name_model(document: Json, model_name: str) -> None:
    """Bodies, paths and examples name the model that is served: any other is 404."""
    for schema in document["components"]["schemas"].values():
        given = schema.get("properties", {}).get("model")
        if given is not None and schema["title"].endswith("Body"):
            is_optional = "model" not in schema.get("required", ())
            names = [model_name, None, ""] if is_optional else [model_name]
            schema["properties"]["model"] = {"title": "Model", "enum": names}
    for _, _, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["name"] == "model":
                parameter["schema"] = {"type": "string", "enum": [model_name]}
        for media in _media(operation):
            named = [example["value"] for example in media.get("examples", {}).values()]
            for example in (*named, media.get("example")):
                _name_model_in(example, model_name)


def _name_model_in(example: Any, model_name: str) -> None:
    """Name the model in a body, an answer, a card of a model or a list of those."""
    if not isinstance(example, dict):
        return
    if "model" in example:
        example["model"] = model_name
    if example.get("object") == "model":
        example["id"] = model_name
    for card in example.get("data", ()):
        _name_model_in(card, model_name)
