"""A small campaign of kills loses no request and no token."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kill_campaign import Campaign, report, run
from engine.models.create import create_model
from engine.spec.plan import ParallelPlan


@pytest.mark.slow
@pytest.mark.parametrize("plan", [ParallelPlan(tp=2), ParallelPlan(sp=2, shift=True)], ids=str)
def test_requests_survive_kills_of_their_ranks(plan: ParallelPlan, tmp_path: Path) -> None:
    create_model(tmp_path / "model", preset="tiny", seed=1)
    campaign = Campaign(plan=plan, num_requests=40, num_kills=2, output_tokens=80)
    outcome = run(campaign, tmp_path / "model")
    assert outcome.is_clean
    assert outcome.num_requests >= campaign.num_requests
    assert outcome.restarts == len(outcome.recovery_s) == campaign.num_kills
    assert f"| {plan} |" in report([campaign], [outcome], others_share=0.0)
