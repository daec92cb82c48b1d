"""Whether a description shows every operation: a name, a summary, and examples that are true."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema_rs import Draft202012Validator

Json = dict[str, Any]
METHODS = ("get", "put", "post", "patch", "delete")


def check_examples(document: Json) -> int:
    """See that every operation has an id of its own, a summary, and an example of each JSON body
    and JSON answer that its schema takes; give the number of examples."""
    ids: list[str] = []
    num_examples = 0
    for path, item in document["paths"].items():
        for method in METHODS:
            if method not in item:
                continue
            operation = item[method]
            ids.append(operation["operationId"])
            assert operation["summary"], path
            for where, media in _json_parts(operation):
                found = _examples(media)
                assert found, f"{ids[-1]}: its {where} has no example"
                for example in found:
                    _check(document, media["schema"], example, f"{ids[-1]}: {where}")
                num_examples += len(found)
    assert len(ids) == len(set(ids))
    return num_examples


def list_operations(document: Json) -> list[str]:
    """Method, path and id of every operation, as clients that are made from the description have
    them: ``GET /v1/engines list_engines``."""
    return sorted(
        f"{method.upper()} {path} {item[method]['operationId']}"
        for path, item in document["paths"].items()
        for method in METHODS
        if method in item
    )


def _json_parts(operation: Json) -> Iterator[tuple[str, Json]]:
    """What travels as JSON, by where: the body, and the answers of 2xx."""
    answers = operation["responses"].items()
    parts = [("body", operation.get("requestBody", {}))]
    parts += [(status, answer) for status, answer in answers if status.startswith("2")]
    for where, part in parts:
        for media_type, media in part.get("content", {}).items():
            if media_type.endswith("json") and "ndjson" not in media_type:
                yield f"{where} ({media_type})", media


def _examples(media: Json) -> list[Any]:
    named = [example["value"] for example in media.get("examples", {}).values()]
    return [media["example"], *named] if "example" in media else named


def _check(document: Json, schema: Json, example: Any, where: str) -> None:
    """See that the example is as its schema says, and leaves out nothing that it must have."""
    whole = {**schema, "components": document["components"]}
    faults = [str(fault) for fault in Draft202012Validator(whole).iter_errors(example)]
    assert not faults, f"{where}: {faults}"
    name = schema.get("$ref", "").rpartition("/")[2]
    known = document["components"]["schemas"].get(name, {})
    unknown = example.keys() - known.get("properties", {}).keys() if name else set()
    assert not unknown or known.get("additionalProperties"), f"{where}: {unknown}"
