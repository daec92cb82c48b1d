"""Recommendations: the settings each stands for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from api.documents.recommendation import predicted_for, recommended_settings
from engine.spec.modes import AUTO, SHIFT, TABLE, ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings


@pytest.mark.parametrize("pin", [TABLE, AUTO, ModePin(SHIFT)])
def test_a_recommendation_is_known_again_in_the_settings_it_stands_for(pin: ModePin) -> None:
    settings = Settings(
        plan=ParallelPlan(sp=2, shift=True),
        threshold_tokens=128,
        caps=Caps(max_num_seqs=32),
        pin=pin,
    )
    document = {
        "settings": settings.to_json(),
        "fidelity": "measured",
        "predicted": {"p95_ttft_ms": 80.0},
    }
    assert recommended_settings(document) == settings
    found = predicted_for(document, settings)
    assert found == {"fidelity": "measured", "metrics": {"p95_ttft_ms": 80.0}}
    assert predicted_for(document, replace(settings, threshold_tokens=127)) is None
    assert predicted_for({}, settings) is None
