"""The service does what its description says: schemathesis tries every operation, all checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from api.web.settings import ServiceSettings
from store import Database
from tests.api.conftest import ADMIN
from tests.api.live import free_port, running_service

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = 50
TIMEOUT_S = 1000


def test_no_operation_answers_what_its_description_does_not_say(
    settings: ServiceSettings, database: Database, tmp_path: Path
) -> None:
    del database  # its schema is what is needed
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed; it comes with the extra 'dev'")
    unlimited = settings.model_copy(update={"rate_per_s": 0.0})
    with running_service(unlimited, free_port()) as url:
        done = subprocess.run(
            [
                *(program, "--config-file", CONFIG, "run", f"{url}/openapi.json"),
                *("--header", f"Authorization: Bearer {ADMIN}", "--checks", "all"),
                *("--max-examples", str(EXAMPLES), "--seed", "1", "--continue-on-failure"),
                # A stream of events ends with its job, which no worker takes here.
                *("--exclude-operation-id", "follow_tuning_job", "--request-timeout", "60"),
                *("--warnings", "off", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-20_000:]
