"""The API's description, completed in one place: refusals and examples of every operation, and the
bounds of :mod:`api.schemas.plain` in what it takes."""

from __future__ import annotations

from api.schemas.base import Body, View
from api.schemas.plain import MAX_JSON_FLOAT, MAX_JSON_INT
from api.web.errors import PROBLEM_TYPE
from engine.server.description import (
    REFS,
    Json,
    drop_framework_errors,
    operations,
    refuse,
    show_examples,
)
from engine.server.shapes import Problem

TEXT = {"type": "string", "pattern": r"^[^\x00]*$"}
PLAIN = {"$ref": f"{REFS}PlainValue"}
PLAIN_OBJECT = {"type": "object", "propertyNames": TEXT, "additionalProperties": PLAIN}
# What can be kept. Arrays and objects may be nested as deep as MAX_DEPTH.
PLAIN_VALUE = {
    "anyOf": [
        {"type": ["null", "boolean"]},
        {"type": "integer", "minimum": -MAX_JSON_INT, "maximum": MAX_JSON_INT},
        {"type": "number", "minimum": -MAX_JSON_FLOAT, "maximum": MAX_JSON_FLOAT},
        TEXT,
        {"type": "array", "items": PLAIN},
        PLAIN_OBJECT,
    ]
}


def refusals(path: str, method: str, operation: Json) -> set[int]:
    """The statuses from 400 on that an operation can answer, beside those it says itself."""
    found = set()
    parameters = {parameter["name"].lower() for parameter in operation.get("parameters", ())}
    if "security" in operation:
        found |= {401, 403, 422, 429}
    if "{" in path:
        found |= {404}
    if "requestBody" in operation:
        found |= {400, 404, 408, 413, 422}
        if "application/json" not in operation["requestBody"]["content"]:
            found |= {415}
    if method != "get":
        found |= {409}
    if "if-match" in parameters:
        found |= {412, 428}
    return found


def complete(document: Json) -> None:
    """Write into the description what no route says of itself."""
    for path, method, operation in operations(document):
        own = {int(code) for code in operation["responses"] if int(code) >= 400}
        for status in sorted(own | refusals(path, method, operation)):
            refuse(document, operation, status, PROBLEM_TYPE, "Problem")
        for parameter in operation.get("parameters", ()):
            parameter["required"] |= parameter["name"].lower() == "if-match"  # else 428
    drop_framework_errors(document)
    show_examples(document, (Body, View))
    problem = Problem.model_json_schema(ref_template=f"{REFS}{{model}}")
    schemas = {**problem.pop("$defs"), "Problem": problem, "PlainValue": PLAIN_VALUE}
    document["components"]["schemas"] |= schemas
    _narrow_bodies(document)


def _narrow_bodies(document: Json) -> None:
    """Give texts and free objects of request bodies the bounds of everything that is kept."""
    schemas, seen = document["components"]["schemas"], set()
    rest = [op.get("requestBody", {}) for _, _, op in operations(document)]
    while rest:
        node = rest.pop()
        if isinstance(node, list):
            rest += node
        if not isinstance(node, dict):
            continue
        name = str(node.get("$ref", "")).removeprefix(REFS)
        if name and name not in seen:
            seen.add(name)
            rest.append(schemas[name])
        if node.get("type") == "string" and not node.keys() & {
            "enum",
            "const",
            "format",
            "pattern",
        }:
            node |= TEXT
        if node.get("type") == "object" and node.get("additionalProperties") is True:
            node |= PLAIN_OBJECT
        rest += [
            part for key, part in node.items() if key not in ("examples", "example", "default")
        ]
