"""The documents make a site without a warning, with what pages take from reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rooms import ROOT

pytest.importorskip("mkdocs")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    accuracy = (tmp_path / "accuracy" / "index.html").read_text()
    assert "mean absolute error" in accuracy
    assert "Groups, each held out" not in accuracy
    assert "h200 llama-3.1-70b trtllm" in accuracy
    assert (tmp_path / "repository" / "benchmarks" / "reports" / "index.html").exists()
    commands = (tmp_path / "reference" / "command-line" / "index.html").read_text()
    assert "--max-num-batched-tokens" in commands
    python = (tmp_path / "reference" / "python" / "index.html").read_text()
    assert "Forecaster" in python
    assert ":class:`" not in python
    for name, path in (("control-plane", "/v1/tuning-jobs"), ("engine-server", "/v1/completions")):
        assert path in (tmp_path / "reference" / name / "index.html").read_text()
        assert path in json.loads((tmp_path / "reference" / f"{name}.json").read_text())["paths"]
    assert (tmp_path / "reference" / "redoc.standalone.js").exists()
