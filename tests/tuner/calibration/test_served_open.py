"""Published open-loop runs in one node and over two, simulated as a command line does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tuner.calibration.served_open import (
    BACKEND,
    DEPLOYMENTS,
    MODEL,
    Deployment,
    read_runs,
    simulate_runs,
    write_runs,
)
from tuner.described.parse import describe_node
from tuner.spec.errors import TunerError

DATA = Path(__file__).parents[3].parent / "shared" / "served"


@pytest.mark.skipif(not DATA.is_dir(), reason="the published runs are not beside this project")
@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: str(deployment.plan))
def test_decodes_of_published_runs_are_foreseen_with_and_without_stages(
    tmp_path: Path, deployment: Deployment
) -> None:
    """At 1 and 16 requests a second, of which the second finds the first's prompts."""
    asked = replace(deployment, runs={rate: deployment.runs[rate] for rate in (1, 16)})
    path = tmp_path / "runs.csv"
    write_runs(path, DATA, asked, seed=0)
    node = describe_node(model=MODEL, hardware=asked.hardware, dtype="bf16", backend=BACKEND)
    for rate, means in simulate_runs(node, asked, read_runs(path)).items():
        assert means.tpot_ms == pytest.approx(asked.runs[rate].tpot_ms, rel=0.12)


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(TunerError, match="no such file"):
        write_runs(tmp_path / "runs.csv", tmp_path, DEPLOYMENTS[0], seed=0)
