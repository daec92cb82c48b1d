"""Patches of an engine's policy, as they are typed."""

from __future__ import annotations

import json
from typing import Any

from api.cli.common import fail

PATCH_HELP = """JSON Merge Patch of the policy, as in '{"caps": {"max_num_seqs": 96}}'"""


def read_patch(text: str, *, or_else: str = "") -> dict[str, Any]:
    """The patch; ends where it is none, nor what it might be ``or_else``."""
    try:
        patch = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f"neither {or_else} nor JSON" if or_else else "no JSON"
        fail(f"{text!r}: {what} ({error})")
    if not isinstance(patch, dict):
        fail(f'{text!r}: write a patch as in {{"caps": {{"max_num_seqs": 96}}}}')
    return patch
