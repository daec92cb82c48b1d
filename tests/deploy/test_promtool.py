"""Prometheus' own tool finds nothing wrong with ``deploy/prometheus`` and the board's queries."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.queries import DEPLOY, RULES, queries

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here (Debian package prometheus)"
)


def _promtool(*words: object) -> str:
    done = subprocess.run(
        ["promtool", *map(str, words)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_sound() -> None:
    assert "SUCCESS" in _promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_the_scrape_configuration_is_sound() -> None:
    _promtool("check", "config", "--lint-fatal", DEPLOY / "prometheus" / "prometheus.yml")


def test_the_rules_do_what_their_own_tests_say() -> None:
    _promtool("test", "rules", DEPLOY / "prometheus" / "rules_test.yml")


def test_every_query_can_be_read(tmp_path: Path) -> None:
    """Grafana's variables stand where a value will."""
    plain = [re.sub(r"\$\w+", ".*", query.replace("$__rate_interval", "5m")) for query in queries()]
    named = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(plain)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": named}]}))
    _promtool("check", "rules", file)
