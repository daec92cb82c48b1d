"""Whether a server does what its description says: schemathesis tries every operation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

EXAMPLES = 50
SEED = 1
TIMEOUT_S = 1000
REPORT_CHARS = 20_000
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


def check_contract(
    url: str,
    *,
    key: str,
    config: Path,
    folder: Path,
    known: Mapping[str, Sequence[str]],
) -> None:
    """Try every operation of the server at ``url``, with all checks.

    ``config`` says what no schema can; ``known`` are values that exist, by the names of the
    dictionaries that it draws them from. Fails with the findings.
    """
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed; it comes with the extra 'dev'")
    own = folder / "schemathesis.toml"
    own.write_text(config.read_text() + "".join(_dictionary(*item) for item in known.items()))
    done = subprocess.run(
        [
            *(program, "--config-file", own, "run", f"{url}/openapi.json"),
            *("--header", f"Authorization: Bearer {key}", "--checks", "all"),
            *("--max-examples", str(EXAMPLES), "--seed", str(SEED), "--continue-on-failure"),
            *("--request-timeout", "60", "--warnings", "off", "--no-color"),
        ],
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    print(done.stdout[-REPORT_CHARS:])  # also told of a test that passes, with -rP
    assert done.returncode == 0, "findings: see above"


def _dictionary(name: str, values: Sequence[str]) -> str:
    assert values, f"nothing is known for {name}"
    return f"\n[dictionaries.{name}]\nvalues = {json.dumps(list(values))}\n"
