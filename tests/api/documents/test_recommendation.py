"""Recommendations: the policy each stands for."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from api.documents.recommendation import predicted_for, recommended_policy
from engine.spec.settings import Caps


@pytest.mark.parametrize("mode", ["table", "auto", "shift"])
def test_a_recommendation_is_known_again_in_the_policy_it_stands_for(mode: str) -> None:
    document = {
        "plan": "sp=2,shift",
        "shift_threshold": 128,
        "caps": asdict(Caps(max_num_seqs=32)),
        "mode": mode,
        "fidelity": "measured",
        "predicted": {"p95_ttft_ms": 80.0},
    }
    policy = recommended_policy(document)
    assert (policy.mode, policy.threshold_tokens, policy.plan.shift) == (mode, 128, True)
    found = predicted_for(document, {"schema": "policy/v1", **policy.to_json()})
    assert found == {"fidelity": "measured", "metrics": {"p95_ttft_ms": 80.0}}
