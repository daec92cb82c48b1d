"""How the description words a patch of the policy, which is read by hand."""

from __future__ import annotations

from typing import Any

from engine.spec.admission import LEAST_BURST, MOST_BURST, MOST_RATE_RPS
from engine.spec.modes import MODE_PATTERN, PIN_PATTERN
from engine.spec.plan import AXES
from engine.spec.settings import MOST_CAP, MOST_STEP_MS, Order

Json = dict[str, Any]
COUNT: Json = {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_CAP}
FROM_ZERO: Json = {**COUNT, "minimum": 0}


def _section(fields: Json) -> Json:
    return {"type": ["object", "null"], "properties": fields, "additionalProperties": False}


SCHEMA = {
    "title": "PolicyPatch",
    "type": "object",
    "properties": {
        "plan": _section(dict.fromkeys(AXES, COUNT)),
        "shift": _section(
            {
                "enabled": {"type": ["boolean", "null"]},
                "threshold_tokens": FROM_ZERO,
                "rungs": {
                    "type": ["array", "null"],
                    "items": {"type": "string", "pattern": MODE_PATTERN},
                },
                "rung_thresholds": {
                    "type": ["object", "null"],
                    "patternProperties": {MODE_PATTERN: FROM_ZERO},
                    "additionalProperties": False,
                },
            }
        ),
        "caps": _section(
            {
                "max_num_seqs": COUNT,
                "max_num_batched_tokens": COUNT,
                "max_step_ms": {
                    "type": ["number", "null"],
                    "exclusiveMinimum": 0,
                    "maximum": MOST_STEP_MS,
                },
                "max_queue": FROM_ZERO,
            }
        ),
        "admission": _section(
            {
                "rate_rps": {
                    "type": ["number", "null"],
                    "exclusiveMinimum": 0,
                    "maximum": MOST_RATE_RPS,
                },
                "burst_requests": {**COUNT, "minimum": LEAST_BURST, "maximum": MOST_BURST},
            }
        ),
        "scheduler": _section({"order": {"enum": [*map(str, Order), None]}}),
        "mode": {"type": ["string", "null"], "pattern": PIN_PATTERN},
    },
    "patternProperties": {
        "^(schema|engine|version)$": {"description": "Only as they were read: labels cannot be set"}
    },
    "additionalProperties": False,
}
EXAMPLES = {
    "threshold": {"value": {"shift": {"threshold_tokens": 128}}},
    "caps": {"value": {"caps": {"max_num_seqs": 32, "max_step_ms": 45}}},
    "admission": {"value": {"admission": {"rate_rps": 12.5}}},
}
PATCH: Json = {
    "requestBody": {
        "required": True,
        "description": "A JSON Merge Patch (RFC 7396) of the policy document",
        "content": {
            "application/merge-patch+json": {"schema": SCHEMA, "examples": EXAMPLES},
            "application/json": {"schema": SCHEMA, "examples": EXAMPLES},
        },
    },
    "parameters": [
        {
            "name": "If-Match",
            "in": "header",
            "required": True,
            "description": "The ETag of the policy that is changed, or *",
            "schema": {"type": "string"},
        }
    ],
}
