"""What `make audit` says of dependencies."""

from __future__ import annotations

import json
from typing import Any

from tests.audit import report

SAFE = {"name": "safe", "version": "1.0", "vulns": []}
OPEN = {"name": "open", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI"}


def _report(*packages: dict[str, Any]) -> tuple[list[str], int]:
    return report(json.dumps({"dependencies": packages, "fixes": []}))


def test_vulnerabilities_are_named_with_the_way_out() -> None:
    lines, status = _report(SAFE, OPEN)
    assert lines == ["open 2.0: PYSEC-1, mended in 2.1", "2 packages looked up"]
    assert status == 1


def test_what_could_not_be_looked_up_is_said_and_is_not_called_safe() -> None:
    assert _report(SAFE, UNKNOWN)[0][0] == "the registry did not answer for 1 of 2 packages"
    assert _report(SAFE, UNKNOWN)[1] == 0
    assert _report(UNKNOWN)[1] == 2
